"""Tables of records: a name finds its record or is refused, and a record finds its code.

Records name code as "module:attribute", which is imported when it is used. So tables cost nothing
to read, and a job depends on the code that its own records name, not on all that a table lists.
"""

from collections.abc import Iterable, Mapping
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any, Protocol, TypeVar

from d2dmoe.errors import UnknownName, missing_extra


class _Named(Protocol):
    @property
    def name(self) -> str: ...


Record = TypeVar("Record")
NamedRecord = TypeVar("NamedRecord", bound=_Named)


def look_up(table: Mapping[str, Record], name: str, kind: str) -> Record:
    """The record of a name; `kind` says in the message what the table holds.

    Raises:
        UnknownName: the table has no such name; the message lists the allowed ones.
    """
    try:
        return table[name]
    except (KeyError, TypeError):
        raise UnknownName(f"unknown {kind} {name!r}; allowed: {', '.join(table)}") from None


def table_of(records: Iterable[NamedRecord]) -> dict[str, NamedRecord]:
    """Records by their names, in their order."""
    return {record.name: record for record in records}


@cache
def resolve(reference: str) -> Any:
    """What a reference "module:attribute" names.

    Raises:
        MissingExtra: the module needs a library of an extra that is not installed.
        ImportError: there is no such module.
        AttributeError: the module has no such attribute.
    """
    module, _, attribute = reference.partition(":")
    return getattr(module_named(module), attribute)


def module_of(reference: str) -> str:
    """The module of a reference."""
    return reference.partition(":")[0]


def module_named(name: str) -> ModuleType:
    """A module that a record names, or a library that an extra brings.

    Raises:
        MissingExtra: it needs a library of an extra that is not installed.
        ImportError: there is no such module.
    """
    try:
        return import_module(name)
    except ImportError as error:
        if missing := missing_extra(error):
            raise missing from error
        raise
