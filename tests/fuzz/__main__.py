"""Damaged input in any number: `uv run python tests/fuzz` (numbers of cases: see --help).

A fault is told with its number; `--only NUMBER` makes that case again alone.
"""

import argparse
import sys
import tempfile
import warnings
from pathlib import Path

import checkpoints
import configurations
import results
from mutations import seeds
from outcomes import outcomes

KINDS = {"configurations": configurations, "checkpoints": checkpoints, "tables": results}
COUNTS = {"configurations": 10_000, "checkpoints": 2_000, "tables": 1_000}


def main() -> int:
    """0 if there are no faults."""
    parser = argparse.ArgumentParser("tests/fuzz", description=__doc__)
    for kind, count in COUNTS.items():
        parser.add_argument(f"--{kind}", type=int, default=count, help="number of cases")
    parser.add_argument("--seed", type=int, default=0, help="of all cases")
    parser.add_argument("--only", type=int, help="this case of each kind alone")
    parser.add_argument("--shown", type=int, default=20, help="faults that are told of each kind")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    failed = False
    for kind, module in KINDS.items():
        generators = list(seeds(getattr(options, kind), options.seed))
        if options.only is not None:
            generators = generators[options.only : options.only + 1]
        with tempfile.TemporaryDirectory() as folder:
            found = outcomes(module.case, generators, Path(folder))
        print(f"{kind}: {found.text}", flush=True)
        for number, fault in found.faults[: options.shown]:
            print(f"\n--- {kind} {number}\n{fault}")
        failed |= bool(found.faults)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
