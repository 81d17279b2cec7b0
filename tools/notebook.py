"""The tutorial as a notebook: python tools/notebook.py writes docs/tutorial.ipynb anew."""

import re
from pathlib import Path

import nbformat
from nbformat import v4

PAGE = Path(__file__).parents[1] / "docs/tutorial.md"
BLOCK = re.compile(r"```python\n(.*?)```\n?", re.S)
FIRST = "# In the repository's folder, and its environment or after: %pip install d2dmoe[hf] datasets"


def notebook(page: str) -> nbformat.NotebookNode:
    """A cell for every block of code, and one for the text before it."""
    cells = [v4.new_code_cell(FIRST)]
    for index, part in enumerate(BLOCK.split(page)):
        if part.strip():
            new = v4.new_code_cell if index % 2 else v4.new_markdown_cell
            cells.append(new(part.strip()))
    for index, cell in enumerate(cells):
        cell.id = f"cell-{index}"  # not at random
    return v4.new_notebook(cells=cells)


def text(page: str) -> str:
    """The notebook's file."""
    return nbformat.writes(notebook(page)) + "\n"


if __name__ == "__main__":
    PAGE.with_suffix(".ipynb").write_text(text(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
