"""Time and inertia of the balanced k-means that splits an FFN's neurons into experts.

python tools/time_clustering.py --shapes 3072x768x768 16384x2048x512
python tools/time_clustering.py --shapes 1024x128x128 --data mixture --compare
"""

import argparse
import resource
import sys
import time
from multiprocessing import get_context

import torch
from torch import Tensor
from torch.nn.functional import normalize

from d2dmoe.experts import assign_neurons

Result = tuple[float, float, float]  # seconds, inertia, peak memory in GB


def make_rows(data: str, d_ff: int, d_model: int, clusters: int) -> Tensor:
    """Weights without structure, or around as many directions as clusters, unequally many each."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(d_ff, d_model, generator=generator)
    if data == "gaussian":
        return rows
    directions = torch.randn(clusters, d_model, generator=generator)
    share = torch.rand(clusters, generator=generator)
    return directions[share.multinomial(d_ff, replacement=True, generator=generator)] + 0.7 * rows


def inertia(rows: Tensor, experts: Tensor) -> float:
    """Sum of squared distances of the unit rows to the means of their experts."""
    rows = normalize(rows.double(), dim=1)
    means = rows[experts.flatten()].unflatten(0, experts.shape).mean(1)
    return float(rows.square().sum() - experts.shape[1] * means.square().sum())


def lloyd(rows: Tensor, clusters: int, seed: int) -> Tensor:
    """k-means-constrained: Lloyd's iteration with optimal assignments, the best of three starts."""
    from k_means_constrained import KMeansConstrained  # in the development group only

    size = len(rows) // clusters
    kmeans = KMeansConstrained(
        clusters, size_min=size, size_max=size, n_init=3, random_state=seed, n_jobs=1
    )
    labels = torch.from_numpy(kmeans.fit_predict(normalize(rows.double(), dim=1).numpy()))
    return labels.argsort(stable=True).view(clusters, size)


def measure(library: bool, data: str, d_ff: int, d_model: int, clusters: int, seed: int) -> Result:
    """One clustering; run in a process of its own, whose peak memory includes all imports."""
    rows = make_rows(data, d_ff, d_model, clusters)
    start = time.perf_counter()
    if library:
        experts = lloyd(rows, clusters, seed)
    else:
        experts = assign_neurons(rows, clusters, "kmeans", seed)
    seconds = time.perf_counter() - start
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
    return seconds, inertia(rows, experts), peak


def apart(*args) -> Result:
    """`measure` in a fresh process."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, args)


def shape(text: str) -> tuple[int, int, int]:
    """ROWSxD_MODELxCLUSTERS."""
    d_ff, d_model, clusters = map(int, text.split("x"))
    if d_ff % clusters:
        raise argparse.ArgumentTypeError(f"{clusters} clusters do not divide {d_ff} rows")
    return d_ff, d_model, clusters


def main() -> None:
    """Print one row per shape."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", type=shape, required=True, help=shape.__doc__)
    parser.add_argument("--data", choices=["gaussian", "mixture"], default="gaussian")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compare", action="store_true", help="run k-means-constrained as well")
    args = parser.parse_args()
    head = f"{'rows':>6} {'d_model':>7} {'clusters':>8} {'s':>8} {'inertia':>11} {'GB':>5}"
    other = f" | {'s':>8} {'inertia':>11} {'GB':>5} {'ours':>7}  (k-means-constrained)"
    print(head + (other if args.compare else ""))
    for d_ff, d_model, clusters in args.shapes:
        problem = (args.data, d_ff, d_model, clusters, args.seed)
        ours = apart(False, *problem)
        print(f"{d_ff:6} {d_model:7} {clusters:8} {_columns(ours)}", end="", flush=True)
        if args.compare:
            theirs = apart(True, *problem)
            print(f" | {_columns(theirs)} {ours[1] / theirs[1] - 1:+7.2%}", end="")
        print(flush=True)


def _columns(result: Result) -> str:
    seconds, inertia, peak = result
    return f"{seconds:8.2f} {inertia:11.3f} {peak:5.2f}"


if __name__ == "__main__":
    main()
