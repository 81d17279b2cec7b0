"""The page itself: template, style, libraries, data and code in one file."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from d2dmoe.explorer.libraries import LIBRARIES, code
from d2dmoe.io.files import write_atomically

WEB = Path(__file__).parent / "web"
SCRIPTS = ("basics", "charts", "points", "budgets", "point", "latency", "maps", "claims", "page")


def write_page(path: Path, data: Mapping[str, Any]) -> None:
    """Write the page of all that `results` and `timings` hold.

    Raises:
        DataError: a library is not the published one.
        UserError: the disk is full, or the folder cannot be written.
    """
    text = page(data)
    write_atomically(path, lambda p: p.write_text(text, encoding="utf-8"))


def page(data: Mapping[str, Any]) -> str:
    """Its HTML. The same results give the same text."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    parts = {
        "style": _web("explorer.css"),
        "libraries": "\n".join(f"<script>\n{code(x)}</script>" for x in LIBRARIES),
        "data": text.replace("<", "\\u003c"),  # ends no script
        "code": "\n".join(_web(f"{name}.js") for name in SCRIPTS),
    }
    before, *rest = _web("explorer.html").split("{{")
    return before + "".join(parts[name] + text for name, text in (x.split("}}", 1) for x in rest))


def _web(name: str) -> str:
    return (WEB / name).read_text(encoding="utf-8")
