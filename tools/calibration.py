"""How well calibrations hold on test samples: python tools/calibration.py [FOLDER] [--most N]

FOLDER is where Snakemake ran, with `results/` in it; the present one unless given. N is how many
samples of a split are used at most; all unless given. The variants
d2dmoe and attention of every task, of the first seed, are calibrated on validation samples and
measured on test samples, as far as their models are there. Prints a table in Markdown: how far
budgets and tolerated losses are missed, and, by the rows of one τ and of one a layer, what the
latter gains: the loss at the same cost, or the cost at the same loss.
"""

import argparse
import csv
import warnings
from pathlib import Path
from typing import Any

import torch
import yaml

from d2dmoe.api.calibrate import calibrate
from d2dmoe.api.calibration import Calibration
from d2dmoe.api.evaluate import Evaluation, evaluate
from d2dmoe.api.operating_points import Values
from d2dmoe.checkpoint import load_model
from d2dmoe.data.splits import Split, open_split
from d2dmoe.errors import UserError
from d2dmoe.moe import set_operating_point
from d2dmoe.stages.calibrate import SplitBatches, split_loss

VARIANTS = ("d2dmoe", "attention")
BUDGETS = (0.5, 0.6, 0.7, 0.8)
TOLERANCES = (0.005, 0.01, 0.02, 0.05)
HEADER = "task | variant | τ | asked | validation | test | off, % of the dense cost | interval | in"


def folders(root: Path) -> dict[tuple[str, str], Path]:
    """The last stage's folder of each task and variant."""
    found = {}
    with open(root / "results/models.csv") as file:
        for row in csv.DictReader(file):
            key = row["task"], row["variant"]
            if row["variant"] in VARIANTS and row["stage"] == "router" and key not in found:
                found[key] = root / row["folder"]
    return found


def measured(model: torch.nn.Module, split: Split, batch_size: int, values: Values) -> Evaluation:
    set_operating_point(model, "dynamic_k", values)
    device = next(model.parameters()).device
    return evaluate(model, SplitBatches(split, batch_size, device), loss=split_loss)


class First:
    """The first samples of a split."""

    def __init__(self, split: Split, most: int):
        self.split, self.most = split, min(most, len(split))

    def __len__(self) -> int:
        return self.most

    def __getattr__(self, name: str) -> Any:
        return getattr(self.split, name)


def lines(name: str, folder: Path, root: Path, batch_size: int, most: int) -> None:
    """Print a model's rows of the table."""
    model, _spec = load_model(folder / "model.safetensors")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device).eval()
    data = root / yaml.safe_load((folder / "lineage.yaml").read_text())["data"]
    splits = (open_split(data, name, root) for name in ("validation", "test"))
    validation, test = (First(split, most) for split in splits)
    batches = SplitBatches(validation, batch_size, device)
    set_operating_point(model, "dynamic_k", 0.0)
    everything = evaluate(model, SplitBatches(test, batch_size, device), loss=split_loss)
    asked = [{"flops_ratio": x} for x in BUDGETS] + [{"max_loss_increase": x} for x in TOLERANCES]
    for per_layer in (False, True):
        for goal in asked:
            how = "one a layer" if per_layer else "one"
            try:
                found = calibrate(model, batches, per_layer=per_layer, loss=split_loss, **goal)
            except UserError as error:
                print(f"| {name} | {how} | {next(iter(goal.items()))} | {error} |")
                continue
            got = measured(model, test, batch_size, found.values)
            print(f"| {name} | {how} | {row(found, got, everything)} |", flush=True)


def row(found: Calibration, got: Evaluation, everything: Evaluation) -> str:
    """Asked, on validation, on test, off, interval, inside."""
    assert got.loss is not None and everything.loss is not None and found.loss_increase is not None
    increase = got.loss / everything.loss - 1
    if "flops_ratio" in found.asked:
        low, high = found.intervals["flops_ratio"]
        off = 100 * (got.flops_ratio - found.asked["flops_ratio"])
        cells = [f"{found.asked['flops_ratio']:g} of the cost", f"{found.flops_ratio:.4f}"]
        cells += [f"{got.flops_ratio:.4f}, loss {increase:+.2%}", f"{off:+.2f}"]
        inside = "yes" if low <= got.flops_ratio <= high else "no"
        return " | ".join([*cells, f"{low:.4f} … {high:.4f}", inside])
    low, high = found.intervals["loss_increase"]
    cells = [f"{found.asked['max_loss_increase']:+.1%} of the loss", f"{found.loss_increase:+.2%}"]
    cells += [f"{increase:+.2%}", f"cost {got.flops_ratio:.3f}", f"{low:+.2%} … {high:+.2%}"]
    return " | ".join([*cells, "yes" if low <= increase <= high else "no"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("."))
    parser.add_argument("--most", type=int, default=10**9, help="samples of a split")
    parser.add_argument("--tasks", nargs="*", help="all unless given")
    parser.add_argument("--samples", type=int, default=100, help="in a step")
    args = parser.parse_args()
    warnings.simplefilter("ignore")  # small runs have few samples
    print(f"| {HEADER} |\n|{' --- |' * len(HEADER.split('|'))}")
    for (task, variant), folder in folders(args.folder).items():
        wanted = not args.tasks or task in args.tasks
        if wanted and (folder / "model.safetensors").is_file():
            lines(f"{task} | {variant}", folder, args.folder, args.samples, args.most)


if __name__ == "__main__":
    main()
