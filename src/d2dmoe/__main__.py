"""The command `d2dmoe`, also called as `python -m d2dmoe`; it needs the extra `cli`."""

import sys

from d2dmoe.errors import MissingExtra
from d2dmoe.lookup import resolve


def main() -> None:
    """Run the command line, or say what to install for it."""
    try:
        app = resolve("d2dmoe.cli:app")
    except MissingExtra as error:
        sys.exit(f"error: {error}")
    app(prog_name="d2dmoe")


if __name__ == "__main__":
    main()
