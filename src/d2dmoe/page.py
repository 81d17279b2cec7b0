"""A table as a page of HTML, for the report."""

import html
from pathlib import Path

import pandas as pd

from d2dmoe.io.files import write_atomically

MOST = 2000  # rows shown: a browser takes long over more
STYLE = """
body { font: 14px/1.4 system-ui, sans-serif; margin: 1rem; }
table { border-collapse: collapse; }
th, td { padding: 0.2rem 0.6rem; border-bottom: 1px solid #ddd; text-align: left;
  vertical-align: top; }
th { position: sticky; top: 0; background: #fff; border-bottom: 2px solid #444; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
"""


def write_page(path: Path, table: Path) -> None:
    """Write a CSV file's rows as HTML; numbers with four significant digits.

    Raises:
        UserError: the disk is full, or the folder cannot be written.
    """
    rows = pd.read_csv(table, keep_default_na=False, dtype=str)
    title, more = html.escape(table.stem), len(rows) - MOST
    note = f"<p>{more} more rows are in {html.escape(str(table))}.</p>" if more > 0 else ""
    head = "".join(f"<th>{html.escape(column)}</th>" for column in rows.columns)
    body = "\n".join(_row(row) for row in rows[:MOST].itertuples(index=False))
    text = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{STYLE}</style></head>\n<body><h1>{title}</h1>\n"
        f"<table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table>{note}\n"
        "</body></html>\n"
    )
    write_atomically(path, lambda p: p.write_text(text, encoding="utf-8"))


def _row(values: tuple[str, ...]) -> str:
    return f"<tr>{''.join(map(_cell, values))}</tr>"


def _cell(value: str) -> str:
    try:
        number = float(value)
    except ValueError:
        return f"<td>{html.escape(value)}</td>"
    whole = number.is_integer() and abs(number) < 1e6
    return f'<td class="number">{f"{number:.0f}" if whole else f"{number:.4g}"}</td>'
