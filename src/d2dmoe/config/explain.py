"""Faults of a configuration in words: key, value, what is allowed."""

import difflib
import reprlib
from collections.abc import Mapping
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from d2dmoe.config.named import Tagged
from d2dmoe.config.strict import Strict

KEY = "[key]"  # ends pydantic's location of a fault that lies in a dict's key itself

MOST_FAULTS = 20  # that a message lists
LONGEST = 200  # characters of a value in it


class _Repr(reprlib.Repr):
    """Values as Python writes them, but short, whatever aliases have made of them."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxdict = 3, 6
        self.maxlist = self.maxtuple = 10
        self.maxstring = self.maxother = 120

    def repr_int(self, x: int, level: int) -> str:
        return str(x) if x.bit_length() < 128 else f"a number of {x.bit_length()} bits"

    def repr_OrderedDict(self, x: dict, level: int) -> str:
        return self.repr_dict(x, level)


def shown(value: Any) -> str:
    """A value as Python writes it, of at most `LONGEST` characters."""
    text = _Repr().repr(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def explain_all(error: ValidationError, root: type[BaseModel]) -> str:
    """All of pydantic's faults in a model of the type `root`, each in a line."""
    faults = error.errors(include_url=False)
    lines = [explain(fault, root) for fault in faults[:MOST_FAULTS]]
    more = len(faults) - MOST_FAULTS
    return "\n  ".join([*lines, f"and {more} more"] if more > 0 else lines)


def explain(fault: Mapping[str, Any], root: type[BaseModel]) -> str:
    """One of pydantic's faults in a model of the type `root`, in a line."""
    names, kind = _walk(fault["loc"], root)
    tags = ", ".join(_members(kind))
    key = ".".join(names)
    value = fault["input"]
    if fault["type"] == "extra_forbidden":
        allowed = sorted(_walk(fault["loc"][:-1], root)[1].model_fields)
        close = difflib.get_close_matches(names[-1], allowed, n=1)
        hint = f"; did you mean '{close[0]}'?" if close else ""
        return f"{key} = {shown(value)}: unknown key{hint} (allowed keys: {', '.join(allowed)})"
    if fault["type"] == "missing":
        return f"{key}: missing; it is required{_unless(fault['loc'], root)}"
    if fault["type"] == "union_tag_not_found":
        return f"{key}.{_tag_key(fault)}: missing; allowed: {tags}"
    if fault["type"] == "union_tag_invalid":
        tag = fault["ctx"]["tag"]
        return f"{key}.{_tag_key(fault)} = {shown(tag)}: allowed are {tags}"
    message = fault["msg"].removeprefix("Value error, ")
    if fault["loc"][-1:] == (KEY,) or fault["type"] == "invalid_key":  # the value is the key
        if not isinstance(value, str):  # as YAML reads no: and 1:
            key, message = ".".join([*names[:-1], shown(value)]), "a key must be text: quote it"
        return f"{key}: {message}"
    if isinstance(value, Mapping):  # a check over several keys, whose message names them
        return f"{key or 'the configuration'}: {message}"
    return f"{key} = {shown(value)}: {message}"


def _unless(location: tuple, root: type[BaseModel]) -> str:
    """Says of a missing option where it is not required."""
    section: Any = _walk(location[:-1], root)[1]
    strict = isinstance(section, type) and issubclass(section, Strict)
    if not strict or not section.completes(location[-1]):
        return ""
    of_model = "model" in location[:-1]
    return " where the weights do not say it" if of_model else " unless model.weights are given"


def _tag_key(fault: Mapping[str, Any]) -> str:
    return fault["ctx"]["discriminator"].strip("'")


def _walk(location: tuple, root: type[BaseModel]) -> tuple[list[str], Any]:
    """The keys of a fault's location as the user wrote them, and the type of what lies there.

    Models that are told apart by a kind, an architecture or a method add that to pydantic's
    locations.
    """
    names, kind = [], root
    for part in location:
        if part == KEY:
            continue
        if (members := _members(kind)) and part in members:
            kind = members[part]
            continue
        names.append(shown(part).strip("'\""))
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            kind = _type_of(kind.model_fields.get(part))
        else:  # dict[Name, Model], list[Model] or Model | None
            kind = next((k for k in reversed(get_args(kind)) if k is not type(None)), None)
        optional = [k for k in get_args(kind) if k is not type(None)]
        if type(None) in get_args(kind) and len(optional) == 1:
            kind = optional[0]
    return names, kind


def _type_of(field: FieldInfo | None) -> Any:
    """A field's type, with the table that its options are taken from."""
    if field is None:
        return None
    tagged = [part for part in field.metadata if isinstance(part, Tagged)]
    return Annotated[field.annotation, tagged[0]] if tagged else field.annotation


def _members(union: Any) -> dict[str, type[BaseModel]]:
    """The models of a discriminated union by the value of the key that tells them apart."""
    if get_origin(union) is Annotated:
        union, *parts = get_args(union)
        for part in parts:
            if isinstance(part, Tagged):
                return part.members
    found = {}
    for member in get_args(union):
        if isinstance(member, type) and issubclass(member, BaseModel):
            for key in {"kind", "architecture", "method"} & member.model_fields.keys():
                for tag in get_args(member.model_fields[key].annotation):
                    found[tag] = member
    return found
