"""Modules of a user's own that add records to the tables."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from d2dmoe.errors import ConfigError


def import_extensions(raw: Mapping[str, Any]) -> None:
    """Import what a configuration lists under `extensions`, from wherever Python finds modules.

    Raises:
        ConfigError: they are no list of names, or there is no such module.
    """
    names = raw.get("extensions") or []
    if not isinstance(names, list) or not all(map(_is_name, names)):
        raise ConfigError(f"extensions = {names!r}: must be a list of the names of modules")
    for name in names:
        try:
            import_module(name)
        except ImportError as error:
            raise ConfigError(
                f"extensions names the module {name!r}, which cannot be imported: {error}. "
                "Correct the name, or put the module's folder on PYTHONPATH."
            ) from error


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and all(part.isidentifier() for part in value.split("."))
