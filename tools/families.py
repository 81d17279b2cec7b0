"""The table of docs/families.md: which model families are converted by one call, and what of each
was tried. Tiny models with random weights, on the CPU, in two minutes:

    uv run python tools/families.py > docs/families.md

or the rows of some alone: tools/families.py BERT "GPT-2".
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests/unit"))

from families import FAMILIES, REFUSED  # noqa: E402
from family_checks import COLUMNS, Subject, reload_all, save_all  # noqa: E402

from d2dmoe.errors import UserError  # noqa: E402
from d2dmoe.lookup import look_up  # noqa: E402

ABOUT = """\
# Model families

Made by `uv run python tools/families.py > docs/families.md`, tested by
`tests/unit/test_families.py`.

Each is a class of its own library with tiny sizes and random weights, float32, on the CPU. One
call, `d2dmoe.convert(model)`, found its feed-forward blocks and split them; routers are random
ones, at a τ at which about half of the experts run. Errors are relative to the output's largest
number.

- **FFNs found**: how many, and their activation; a block whose weights layers share counts once.
- **all experts on**: the error against the original model.
- **routed: every backend**: the largest error of `dense`, `dynamic_k` and `auto` without gradients
  against the masked layer with gradients.
- **cached generation**: greedy `generate` with a cache says what it says without one.
- **padded batch**: a text in a batch with a longer one gets what it gets alone (decoders are padded
  on the left).
- **bf16**: the error of a model that was converted in bf16, and that of the original in bf16, both
  against the original in float32.
- **`torch.compile`**: in one graph, the same answer.
- **`torch.export`**: the exported program gives the same answer.
- **new process**: the largest difference after saving and loading in another process.
"""


def said(check: Callable[[Subject], str], subject: Subject) -> str:
    """What the table says, a failure included."""
    try:
        return check(subject)
    except (AssertionError, UserError) as failure:
        return f"**fails**: {failure}"


def row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("\n", " ").replace("|", "\\|") for cell in cells) + " |"


def main(names: list[str]) -> None:
    """Print the tables in Markdown; of the families of these names, or of all."""
    subjects = [Subject(look_up(FAMILIES, name, "family")) for name in names or FAMILIES]
    with tempfile.TemporaryDirectory() as folder:
        save_all(subjects, Path(folder))
        reloaded = reload_all(Path(folder))
    header = ["family", "library", *COLUMNS, "new process"]
    print(ABOUT)
    print(row(*header))
    print("|" + " --- |" * len(header))
    for subject in subjects:
        family = subject.family
        cells = [said(check, subject) for check in COLUMNS.values()]
        print(row(family.name, family.library, *cells, reloaded[family.name]))
    print("\nWhat cannot be converted is refused:\n")
    print(row("family", "the error"))
    print("| --- | --- |")
    for name, (family, _) in REFUSED.items():
        try:
            family.convert(family.build())
        except UserError as refusal:
            print(row(name, str(refusal)))


if __name__ == "__main__":
    main(sys.argv[1:])
