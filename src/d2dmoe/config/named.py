"""Options that name a record of a table: by its name alone, or as the options of that record.

What is allowed is read from the table when a model is first used, so that records which were added
by then count.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema

from d2dmoe.lookup import look_up, resolve


class OneOf:
    """Annotates a text: a name that a table holds; `kind` says in messages what that is."""

    def __init__(self, table: Mapping[str, Any], kind: str):
        self.table, self.kind = table, kind

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return handler(schema) | {"enum": list(self.table)}

    def _check(self, name: str) -> str:
        look_up(self.table, name, self.kind)
        return name


class Tagged:
    """Annotates the options of a record, whose key `key` is the record's name; records that have
    no options are left out."""

    def __init__(self, key: str, table: Mapping[str, Any]):
        self.key, self.table = key, table

    @property
    def members(self) -> dict[str, type[BaseModel]]:
        """The models of the options by the records' names."""
        named = {name: record.options for name, record in self.table.items()}
        return {name: resolve(options) for name, options in named.items() if options}

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        choices = {name: handler.generate_schema(model) for name, model in self.members.items()}
        return core_schema.tagged_union_schema(choices, self.key)
