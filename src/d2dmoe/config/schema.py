"""The JSON schema of the configuration, for editors: `python -m d2dmoe.config.schema`."""

import json
from pathlib import Path
from typing import Any

from d2dmoe.config.experiment import Config

PATH = Path("config.schema.json")


def schema_text() -> str:
    """The schema as it is kept in the repository's root."""
    schema = _without_keys_of_choices(Config.model_json_schema())
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def _without_keys_of_choices(schema: Any) -> Any:
    """Several choices may fit where the key that tells them apart may be left out."""
    if isinstance(schema, list):
        return [_without_keys_of_choices(value) for value in schema]
    if not isinstance(schema, dict):
        return schema
    chosen = schema.get("discriminator", {}).get("propertyName") in ("architecture", "kind")
    names = {key: "anyOf" if chosen and key == "oneOf" else key for key in schema}
    return {names[key]: _without_keys_of_choices(value) for key, value in schema.items()}


if __name__ == "__main__":
    PATH.write_text(schema_text(), encoding="utf-8")
