"""Random damage to a tree of plain values, to bytes, and to a table's text."""

import copy
import json
import random
import string
from collections.abc import Iterator
from typing import Any

TEXTS = (
    *("", " ", "nan", "NaN", "null", "None", "NA", "inf", "-inf", "true", "no", "~", "1", "007"),
    *("1e-3", "1e999", "0x10", "1_000", "=1+1", "a,b", 'a"b', "a\nb", "a\tb", "../x", "/", "."),
    *("é", "e\u0301", "K", "İ", "𝔘", "\u202e", "\x00", "x" * 300, "x" * 5000, "-", "all", "dense"),
    *("dense_finetuned", "vision", "path:", "path:nowhere", "hub:", "vendored:", "path:\x00"),
    *("path:.", "path:README.md", "hub:a/b@c", "scratch", "{task}", "$x$", "%s", "a" * 65),
)
NUMBERS = (
    *(0, 1, -1, 2, 3, 7, 10, 64, 1000, 2**31, 2**63, 10**30, 0.0, -0.0, 0.5, 1.0, 1e-3, 1e-320),
    *(1.5, 1e16, 1e308, float("inf"), float("-inf"), float("nan")),
)
OTHERS = (None, True, False, [], {}, [[]], [None], {"a": 1}, {1: 2}, {None: None}, b"x", (1, 2))
SINGLE = (*TEXTS, *NUMBERS, *OTHERS)


def places(tree: Any, limit: int = 10_000) -> list[tuple[Any, Any]]:
    """Every container in a tree with each of its keys."""
    found: list[tuple[Any, Any]] = []
    waiting = [tree]
    while waiting and len(found) < limit:
        value = waiting.pop()
        if isinstance(value, dict | list):
            keys = list(value) if isinstance(value, dict) else list(range(len(value)))
            found += [(value, key) for key in keys]
            waiting += [value[key] for key in keys]
    return found


def mutated(tree: Any, rng: random.Random, most: int = 3, aliases: bool = True) -> Any:
    """A copy of a tree with one to `most` changes; without aliases it is as large as its text."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.randint(1, most)):
        spots = places(tree)
        if not spots:
            return rng.choice(SINGLE)
        rng.choice((*CHANGES, _alias) if aliases else CHANGES)(rng, spots)
    return tree


def _replace(rng: random.Random, spots: list) -> None:
    holder, key = rng.choice(spots)
    holder[key] = copy.deepcopy(rng.choice(SINGLE))


def _remove(rng: random.Random, spots: list) -> None:
    holder, key = rng.choice(spots)
    del holder[key]


def _splice(rng: random.Random, spots: list) -> None:
    (holder, key), (other, its_key) = rng.choice(spots), rng.choice(spots)
    holder[key] = copy.deepcopy(other[its_key])


def _alias(rng: random.Random, spots: list) -> None:
    """What YAML's aliases can make: the same object in two places, in itself, or many times."""
    (holder, key), (other, its_key) = rng.choice(spots), rng.choice(spots)
    value = other[its_key]
    for _ in range(rng.choice((0, 0, 1, 8))):
        value = [value] * 9 if rng.random() < 0.5 else {f"a{i}": value for i in range(9)}
    holder[key] = value


def _rename(rng: random.Random, spots: list) -> None:
    holder, key = rng.choice(spots)
    if isinstance(holder, dict):
        new = rng.choice((*TEXTS, 1, True, None, 0.5, _misspelt(rng, str(key))))
        items = [(new if k == key else k, v) for k, v in holder.items()]
        holder.clear()
        holder.update(items)


def _add(rng: random.Random, spots: list) -> None:
    holder, key = rng.choice(spots)
    value = copy.deepcopy(rng.choice((*SINGLE, holder[key])))
    if isinstance(holder, dict):
        holder[_misspelt(rng, str(key))] = value
    else:
        holder.insert(rng.randint(0, len(holder)), value)


def _scale(rng: random.Random, spots: list) -> None:
    """A number that is near: one more, twice as much, negative, or written as text."""
    numbers = [(h, k) for h, k in spots if type(h[k]) in (int, float)]
    if numbers:
        holder, key = rng.choice(numbers)
        value = holder[key]
        near = (value + 1, value - 1, value * 2, value * 3, -value, value / 2, float(value))
        holder[key] = rng.choice((*near, str(value), f"{value:e}", [value], value // 2))


def _misspelt(rng: random.Random, text: str) -> str:
    at = rng.randint(0, len(text))
    return text[:at] + rng.choice(string.ascii_letters + string.digits + " .,/'") + text[at + 1 :]


CHANGES = (_replace, _replace, _remove, _splice, _rename, _add, _scale, _scale)


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Bytes with a bit flipped, a part missing, repeated, zeroed or random, or cut off."""
    if not content:
        return bytes(rng.randrange(256) for _ in range(9))
    start = rng.randrange(len(content))
    end = min(len(content), start + rng.choice((1, 1, 4, 64, len(content))))
    part = content[start:end]
    kind = rng.randrange(6)
    if kind == 0:
        changed = bytes([part[0] ^ 1 << rng.randrange(8)]) + part[1:]
    elif kind == 1:
        changed = b""
    elif kind == 2:
        changed = part * 2
    elif kind == 3:
        changed = bytes(len(part))
    elif kind == 4:
        changed = rng.randbytes(len(part))
    else:
        return content[:start]
    return content[:start] + changed + content[end:]


CELLS = (*TEXTS[:22], "0", "-1", "1e300", "99999999999999999999", "0.5", '"', "\ufeff", "1,2")


def with_cells(text: str, rng: random.Random, most: int = 3) -> str:
    """A CSV text with one to `most` changes of cells, rows or columns."""
    rows = [line.split(",") for line in text.splitlines()]
    for _ in range(rng.randint(1, most)):
        rows = rows or [[""]]
        row = rng.randrange(len(rows)) if rng.random() < 0.8 else 0
        column = rng.randrange(len(rows[row])) if rows[row] else 0
        kind = rng.randrange(8)
        if kind < 3 and rows[row]:
            rows[row][column] = rng.choice(CELLS)
        elif kind == 3:
            del rows[row]
        elif kind == 4:
            rows.insert(row, list(rows[rng.randrange(len(rows))]))
        elif kind == 5 and rows[row]:
            del rows[row][column]
        elif kind == 6:
            rows[row].insert(column, rng.choice(CELLS))
        else:
            _of_column(rows, column, rng)
    return "\n".join(",".join(row) for row in rows) + "\n"


def _of_column(rows: list[list[str]], column: int, rng: random.Random) -> None:
    """The whole column removed, or the same in every row."""
    value = rng.choice((None, *CELLS))
    for row in rows[rng.randrange(2) :]:
        if column < len(row):
            if value is None:
                del row[column]
            else:
                row[column] = value


def json_of(tree: Any) -> str:
    """A tree as JSON; what JSON does not have is text, or left out."""
    return json.dumps(tree, default=str, skipkeys=True)


def seeds(count: int, seed: int) -> Iterator[random.Random]:
    """A generator for each case, by which it can be made again alone."""
    for number in range(count):
        yield random.Random(f"{seed}/{number}")
