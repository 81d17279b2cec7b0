"""Zero-shot BoolQ by log-likelihood, by EleutherAI's lm-eval, at compute budgets (table 1)."""

import io
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from d2dmoe.errors import DataError, UserError
from d2dmoe.evaluation import count_executed
from d2dmoe.flops import mean_cost
from d2dmoe.inputs import Inputs

STEPS = 4  # measurements at most to find a budget's operating point
TOLERANCE = 0.01  # share of a budget that may stay unused


@dataclass(frozen=True)
class Point:
    """An operating point of a selection rule, measured on validation data."""

    value: float  # of the knob
    ratio: float  # FLOPs relative to the dense model


def calibrate(
    points: Sequence[Point], budget: float, measure: Callable[[float], float] | None
) -> Point | None:
    """The dearest operating point within a budget; its cost is always a measured one.

    Between the dearest measured point within the budget and the nearest one above it, knob values
    are interpolated and measured, until 99 % of the budget are used. After a value that exceeds the
    budget the next step is half as long, to the safe side.

    Args:
        points: measured ones.
        budget: FLOPs relative to the dense model.
        measure: the cost, relative to the dense model, at a value of the knob; None for a knob
            that only takes the points' values.

    Returns:
        None if even the cheapest point exceeds the budget.
    """
    best = max((p for p in points if p.ratio <= budget), key=lambda p: p.ratio, default=None)
    above = [p for p in points if p.ratio > budget]
    if best is None or not above or measure is None:
        return best
    start = best.value
    over = min(above, key=lambda p: abs(p.value - start))
    caution = 1.0
    for _ in range(STEPS):
        if best.ratio >= (1 - TOLERANCE) * budget:
            break
        share = caution * (budget - best.ratio) / (over.ratio - best.ratio)
        value = best.value + share * (over.value - best.value)
        point = Point(value, measure(value))
        caution = 0.5 if point.ratio > budget else 1.0
        if point.ratio > budget:
            over = point
        elif point.ratio > best.ratio:
            best = point
    return best


def load_boolq(source: str, root: Path) -> list[dict[str, Any]]:
    """The questions of a BoolQ set: dicts with question, passage, and label (0: no, 1: yes).

    Args:
        source: hub:NAME, whose split validation is read, or path:FILE (.jsonl or .parquet).
        root: the repository root, to which local names are relative.

    Raises:
        DataError: the set cannot be read, has fewer than two questions or is of another form.
    """
    kind, _, name = source.partition(":")
    try:
        rows = _read_hub(name, root) if kind == "hub" else _read_file(root / name)
    except Exception as error:  # the hub's client and pyarrow raise a dozen unrelated types
        raise DataError(
            f"BoolQ set {source} cannot be read ({type(error).__name__}: {error}). Save it again; "
            "for a set of the hub, check the name and the network."
        ) from error
    if len(rows) < 2:
        raise DataError(f"BoolQ set {source} has {len(rows)} questions; at least 2 are needed.")
    return [_question(f"BoolQ set {source}, row {i} (from 0)", row) for i, row in enumerate(rows)]


def _read_hub(name: str, root: Path) -> list[dict[str, Any]]:
    from datasets import load_dataset

    name, _, revision = name.partition("@")
    name = str(root / name) if (root / name).is_dir() else name
    return load_dataset(name, revision=revision or None, split="validation").to_list()


def _read_file(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        return pq.read_table(path).to_pylist()
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.strip()]


def _question(where: str, row: Mapping[str, Any]) -> dict[str, Any]:
    key = "label" if "label" in row else "answer"
    if missing := [k for k in ("question", "passage", key) if k not in row]:
        raise DataError(
            f"{where}: there is no column {' or '.join(missing)}; the columns are "
            f"{', '.join(row)}. A BoolQ set has question, passage, and label or answer."
        )
    for name in ("question", "passage"):
        if not isinstance(row[name], str) or not row[name].strip():
            raise DataError(f"{where}: the {name} is no text, or empty. Remove or mend the row.")
    if row[key] not in (0, 1):  # as are False and True
        raise DataError(f"{where}: the {key} is {row[key]!r}; allowed are false, true, 0 and 1.")
    return {"question": row["question"], "passage": row["passage"], "label": int(row[key])}


class BoolQ:
    """lm-eval's own BoolQ task over given questions, for one model.

    A passage that is too long for the model loses its beginning.
    """

    def __init__(self, model: nn.Module, tokenizer: Path, rows: list[dict[str, Any]]):
        """Set lm-eval up.

        Args:
            model: a causal language model of transformers, converted or not.
            tokenizer: its tokenizer.json; special tokens are added as it says, those in texts are
                read as text.
            rows: from `load_boolq`.

        Raises:
            UserError: lm-eval is not installed.
        """
        check_installed()
        logging.getLogger("lm_eval").setLevel(logging.ERROR)  # else a line per passage that is cut
        self.model = model
        self.lm = _language_model(model, tokenizer)
        self.task = _task(rows)

    def ask(self, limit: int | None = None) -> dict[str, float]:
        """Accuracy, its standard error, the number of questions, and the FLOPs really executed
        relative to the dense model, on the first `limit` questions (None: on all)."""
        from lm_eval.evaluator import evaluate

        with count_executed(self.model) as executed, record_lengths(self.model) as lengths:
            with redirect_stderr(io.StringIO()):  # progress bars, which would fill the output
                found = evaluate(self.lm, {"boolq": self.task}, limit=limit, log_samples=False)
        result = found["results"]["boolq"]
        totals = {name: e.total for name, e in executed.items()}
        return {
            "flops_ratio": executed_ratio(self.model, totals, lengths),
            "accuracy": float(result["acc,none"]),
            "stderr": float(result["acc_stderr,none"]),
            "samples": found["n-samples"]["boolq"]["effective"],
        }


def check_installed() -> None:
    """Refuse to go on without lm-eval.

    Raises:
        UserError: it is not installed, or not whole.
    """
    try:
        import lm_eval.models.huggingface  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"BoolQ needs lm-eval, which is not installed ({error}). Run the same command with the "
            "extra: `uv run --extra lm-eval snakemake …`, or leave `boolq` out of the task."
        ) from error


def _language_model(model: nn.Module, tokenizer: Path):
    from lm_eval.models.huggingface import HFLM
    from transformers import PreTrainedTokenizerFast

    cutter = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer), split_special_tokens=True)
    config: Any = model.config
    end = config.eos_token_id
    cutter.eos_token = cutter.convert_ids_to_tokens(end[0] if isinstance(end, list) else end)
    # One sample at a time has no padding, which would count as executed.
    longest = config.max_position_embeddings
    return HFLM(pretrained=model, tokenizer=cutter, max_length=longest, batch_size=1)


def _task(rows: list[dict[str, Any]]):
    """lm-eval's BoolQ, its prompt included, with other questions and no examples (zero-shot)."""
    import lm_eval.tasks
    import yaml
    from datasets import Dataset
    from lm_eval.api.task import ConfigurableTask

    path = Path(lm_eval.tasks.__file__).parent / "super_glue/boolq/default.yaml"
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    config.pop("tag", None)
    questions = {"validation": Dataset.from_list(rows)}
    ours = {"training_split": None, "num_fewshot": 0, "custom_dataset": lambda **_: questions}
    return ConfigurableTask(config=config | ours)


@contextmanager
def record_lengths(model: nn.Module) -> Iterator[list[int]]:
    """The number of tokens of every sample that the model reads in the block."""
    lengths: list[int] = []

    def see(_model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        ids = args[0] if args else kwargs["input_ids"]  # [batch, tokens]
        lengths.extend([ids.shape[1]] * len(ids))

    handle = model.register_forward_pre_hook(see, with_kwargs=True)
    try:
        yield lengths
    finally:
        handle.remove()


def executed_ratio(model: nn.Module, totals: dict[str, int], lengths: list[int]) -> float:
    """FLOPs relative to the dense model, given each layer's executed experts and all samples'
    tokens; 1 for a model without experts."""
    if not totals:
        return 1.0
    device = next(model.parameters()).device

    def sample(length: int) -> Inputs:
        return {"input_ids": torch.zeros(1, length, dtype=torch.int64, device=device)}

    cost = mean_cost(model, sample, torch.tensor(lengths))
    return cost.total({name: total / len(lengths) for name, total in totals.items()}) / cost.dense
