"""How fast images and tokens reach a training on this machine, by processes that read.

python tools/time_loading.py                                    synthetic JPEGs as ImageNet's
python tools/time_loading.py --source path:/data/imagenet --workers 0 4 16
python tools/time_loading.py --source path:/data/imagenet --check        names damaged images
"""

import argparse
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from d2dmoe.benchmark.loading import damaged, image_rates, synthetic_tree, token_rates
from d2dmoe.errors import UserError
from d2dmoe.jobs.environment import cpu_name


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", help="of images, as in a configuration; default: synthetic")
    parser.add_argument("--images", type=int, default=400, help="of a synthetic tree")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--batches", type=int, default=12, help="timed")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--check", action="store_true", help="read every image, and time nothing")
    args = parser.parse_args()
    if args.check and not args.source:
        parser.error("--check needs --source")
    return args


def rows(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The rates, one after the other."""
    with ExitStack() as trees:
        root, source = Path.cwd(), args.source
        if not source:
            root, source = trees.enter_context(synthetic_tree(args.images)), "path:tree"
        yield from image_rates(source, root, args.workers, args.batches, args.batch_size)
    yield token_rates(blocks=50_000, length=1024, batches=args.batches, batch_size=976)


def main() -> None:
    """Print a row for each rate, or for each damaged image."""
    args = options()
    torch.set_num_threads(1)
    if args.check:
        faults = 0
        for fault in damaged(args.source, Path.cwd()):
            faults += 1
            print(fault, flush=True)
        sys.exit(f"{faults} images cannot be read" if faults else 0)
    print(cpu_name())
    print(f"{'what':>7} {'workers':>8} {'per second':>12} {'per CPU second':>15}")
    for row in rows(args):
        print(
            f"{row['what']:>7} {row['workers']:8} {row['rate']:12,.0f} {row['core']:15,.0f}",
            flush=True,
        )


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
