"""Decoding with a share of the experts on the GPU, and the others in host memory.

python tools/time_offloading.py                        a Llama of 1B, 20 % of 64 experts executed
python tools/time_offloading.py --small --device cpu   whether it runs

Writes results/benchmarks/offloading.csv and prints it: the resident model, and 100, 50 and 25 % of
the experts resident, with fetching ahead and without. Weights and routers are random: times are
those of copies and kernels; the hit rates of a trained model are its own (`d2dmoe.offload`).
"""

import argparse
from pathlib import Path

import pandas as pd
import torch

from d2dmoe.benchmark.offloading import COLUMNS, offloading_rows
from d2dmoe.config.benchmarks import LlamaBenchmark
from d2dmoe.io.csvfile import write_csv

LARGE = {"layers": 16, "d_model": 2048, "heads": 32, "key_value_heads": 8, "d_ff": 8192}
LARGE |= {"vocab_size": 128256, "num_experts": 64, "router_width": 128, "dtypes": ["bf16"]}
SMALL = {"layers": 3, "d_model": 64, "heads": 4, "key_value_heads": 2, "d_ff": 128}
SMALL |= {"vocab_size": 200, "num_experts": 16, "router_width": 16, "dtypes": ["fp32"]}


def main() -> None:
    """Time, write and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", type=torch.device)
    parser.add_argument("--small", action="store_true", help="a tiny model")
    parser.add_argument("--shares", nargs="+", type=float, default=[1.0, 0.5, 0.25])
    parser.add_argument("--fraction", type=float, default=0.2, help="executed share")
    parser.add_argument("--tokens", type=int, default=64, help="generated tokens that are timed")
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks/offloading.csv"))
    args = parser.parse_args()
    sizes = SMALL if args.small else LARGE
    cfg = LlamaBenchmark(
        kind="llama", phase="decode", context=128, batches=[1], fractions=[args.fraction], **sizes
    )
    name = "small" if args.small else "llama-1b"
    rows = [*offloading_rows(name, cfg, args.device, args.shares, args.tokens)]
    write_csv(args.out, rows, COLUMNS)
    print(pd.DataFrame(rows, columns=COLUMNS).drop(columns=["torch", "triton"]).to_string())


if __name__ == "__main__":
    main()
