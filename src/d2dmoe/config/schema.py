"""The JSON schema of the configuration, for editors: `python -m d2dmoe.config.schema`."""

import json
from pathlib import Path

from d2dmoe.config.experiment import Config

PATH = Path("config.schema.json")


def schema_text() -> str:
    """The schema as it is kept in the repository's root."""
    return json.dumps(Config.model_json_schema(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    PATH.write_text(schema_text(), encoding="utf-8")
