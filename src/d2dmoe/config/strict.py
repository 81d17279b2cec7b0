"""The base of every configuration model: strict types, unknown keys refused, values frozen."""

import re
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    model_validator,
)
from pydantic_core import CoreSchema

LONGEST = 64  # characters of a name

Name = Annotated[  # of tasks, variants: names files, on systems too that tell no capitals apart
    str, Field(pattern=r"^[a-z0-9][a-z0-9_.]*$", max_length=LONGEST)
]
Label = Annotated[str, Field(min_length=1, max_length=100)]  # in legends

COMPLETED = "completed"
"""Annotates a required option that may be left out where a model's weights are given: it is then
read from the checkpoint, or is the usual one (`plan.defaults`)."""

INTEGER = re.compile(r"[-+]?[0-9]{1,18}")
NUMBER = re.compile(r"[-+]?([0-9]{1,18}(\.[0-9]{0,18})?|\.[0-9]{1,18})([eE][-+]?[0-9]{1,3})?")
WORDS = {"true": True, "false": False}
NULLS = ("null", "~")


def distinct(thing: str) -> AfterValidator:
    """Annotates, behind its `Field`, a list that must not repeat anything; `thing` is one of it."""

    def check(values: list) -> list:
        if len(set(values)) != len(values):
            raise ValueError(f"must not repeat {thing}")
        return values

    return AfterValidator(check)


Seeds = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1), distinct("a seed")]


class Strict(BaseModel):
    """No coercion (2.0 is no integer), no unknown keys, no infinities, frozen once validated.

    A number, true, false or null that is written as text is read as what it is where no text is
    allowed: YAML 1.1 reads 1e-3 as text, and Snakemake all that stands in braces after --config.
    """

    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        defer_build=True,  # tables may get more records before the first use
    )

    @model_validator(mode="before")
    @classmethod
    def _read_texts(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        kinds = {key: field.annotation for key, field in cls.model_fields.items()}
        return {key: _as(kinds.get(key), value) for key, value in values.items()}

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """The schema, which requires nothing that may be left out."""
        schema = handler(core)
        own = handler.resolve_ref_schema(schema)
        needed = [key for key in own.pop("required", []) if not cls.completes(key)]
        if needed:
            own["required"] = needed
        return schema

    @classmethod
    def completes(cls, key: str) -> bool:
        """Whether an option may be left out where a model's weights are given."""
        return COMPLETED in cls.model_fields[key].metadata


def _as(kind: Any, value: Any) -> Any:
    """A value whose texts are read as a type asks; what does not fit stays as it is."""
    if isinstance(value, str):
        return _scalar(_members(kind), value)
    if not isinstance(value, list | dict):
        return value
    containers = [k for k in _members(kind) if get_origin(k) in (list, tuple, dict)]
    inner = get_args(containers[0]) if containers else ()
    if isinstance(value, list) and inner:
        return [_as(inner[0], item) for item in value]
    if isinstance(value, dict) and len(inner) == 2:
        return {key: _as(inner[1], item) for key, item in value.items()}
    return value


def _members(kind: Any) -> list[Any]:
    """The types of a union; of another type itself. Annotations are left out."""
    if get_origin(kind) is Annotated:
        return _members(get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        return [member for part in get_args(kind) for member in _members(part)]
    return [kind]


def _scalar(kinds: list[Any], text: str) -> Any:
    if int in kinds and INTEGER.fullmatch(text):
        return int(text)
    if float in kinds and NUMBER.fullmatch(text):
        return float(text)
    if bool in kinds:
        return WORDS.get(text, text)
    if NoneType in kinds and str not in kinds and text in NULLS:
        return None
    return text
