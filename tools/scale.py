"""The tables of docs/scale.md: what configs/paper.yaml takes, computed from the configuration, the
sizes of its models, and rates that were measured or published.

    uv run python tools/scale.py
"""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from d2dmoe.formulas import Transformer
from d2dmoe.plan.lineage import Lineage, Step
from d2dmoe.plan.plan import Plan, load_plan

ROOT = Path(__file__).parents[1]
PEAK = 989e12  # FLOPs per second of an H100 (SXM) in bf16, dense, as its data sheet says
MEMORY_GB = 80  # of an H100
IMAGES_A_CORE = 250  # read per second by tools/time_loading.py; docs/scale.md says of which CPU
READERS = 16  # processes that read for one GPU: `workers` of configs/paper.yaml
TRAINED, MEASURED = 3, 1  # forwards that a step costs: the backward pass is two
PARTS = 2  # of a step that trains new modules on a frozen model: a bound
FP32, BF16 = 4, 2  # bytes
TRAINED_BYTES = 16  # of a parameter: weight, gradient and two moments in fp32
SAVED_BYTES = 12  # in a saved state: no gradient
LOGIT_BYTES = 10  # of a word's score: in bf16, in fp32, and its gradient
EFFICIENCY = {1: 1.0, 8: 0.85}  # of so many GPUs of one host: what is asked of the trainer
GB = 1e9


@dataclass(frozen=True)
class Source:
    """Published facts of a dataset."""

    train: int  # samples of its training split; 0: as many as the configuration takes
    test: int
    gigabytes: float  # to fetch, or to read of a stream


@dataclass(frozen=True)
class Rate:
    """The share of `PEAK` that a training reaches, and whence it is known."""

    share: float
    source: str


SOURCES = {
    "hub:ILSVRC/imagenet-1k": Source(1_281_167, 50_000, 144),
    "hub:dair-ai/emotion": Source(16_000, 2_000, 0.01),
    "hub:Skylion007/openwebtext": Source(0, 0, 5),  # a billion tokens are an eighth of it
    "hub:allenai/c4": Source(0, 0, 5),
}
RATES = {
    "vit": Rate(0.29, "published: ViT-g/14, 1,428 images/s on 8 H100 (NVIDIA NeMo's ViT page)"),
    "bert": Rate(0.29, "**assumed**: as ViT"),
    "gpt2": Rate(0.40, "published: GPT-2 124M, 10 billion tokens in 45 min on 8 H100 (llm.c)"),
    "gemma": Rate(0.40, "**assumed**: what is asked of the trainer; not measured yet"),
}
WORDS = {"bert": 30_522, "gpt2": 50_257, "gemma": 256_000}  # of the published tokenizers
CLASSES = {"imagenet": 1000}  # the other heads cost nothing


def main() -> None:
    """Write the page anew."""
    path = ROOT / "docs/scale.md"
    path.write_text(with_tables(path.read_text()))


def with_tables(page: str) -> str:
    """The page, each table between its marks made anew."""
    plan = load_plan(yaml.safe_load((ROOT / "configs/paper.yaml").read_text()), ROOT)
    works = [Work(plan, task) for task in plan.config.tasks]
    for name, make in {"experiments": experiments, "longest": longest, "rates": rates}.items():
        before, _, rest = page.partition(f"<!-- {name} -->\n")
        after = rest.partition(f"<!-- end of {name} -->\n")[2]
        table = f"<!-- {name} -->\n\n{make(works)}\n\n<!-- end of {name} -->\n"
        page = before + table + after
    return page


@dataclass(frozen=True)
class Work:
    """What a task takes."""

    plan: Plan
    task: str

    @property
    def cfg(self) -> Any:
        return self.plan.task(self.task)

    @property
    def lines(self) -> list[Lineage]:
        return self.plan.lines("main", self.task)

    @property
    def steps(self) -> list[Step]:
        """The stages of all variants, each once."""
        return list({step.folder: step for line in self.lines for step in line.steps}.values())

    @property
    def trainings(self) -> list[Step]:
        return [s for s in self.steps if s.stage.trains and s.cfg.epochs > 0]

    @property
    def source(self) -> Source:
        return SOURCES[self.cfg.data.source]

    @property
    def samples(self) -> int:
        """That train."""
        data = self.cfg.data
        most = getattr(data, "max_train", None)
        return most or self.source.train - (data.validation or 0)

    @property
    def measured(self) -> int:
        """Validation and test samples of one operating point."""
        data = self.cfg.data
        if data.kind == "corpus":
            return data.max_validation + data.max_test
        return data.validation + self.source.test

    @property
    def model(self) -> Transformer:
        return transformer(self.task, self.cfg)

    @property
    def parameters(self) -> int:
        """Of the dense model."""
        return parameters(self.cfg)

    def seen(self, step: Step) -> int:
        """Samples that a training sees."""
        return step.cfg.steps(self.samples) * step.cfg.batch_size

    def flops(self, step: Step) -> float:
        """Of a training."""
        forwards = PARTS if step.stage.parts else TRAINED
        return forwards * self.model.flops * self.seen(step)

    @property
    def evaluated_flops(self) -> float:
        """Of all operating points, each at the cost of the dense model."""
        points = {(x.folder, x.knob): len(getattr(self.cfg.select, x.knob, [])) for x in self.lines}
        return MEASURED * self.model.flops * self.measured * sum(n or 1 for n in points.values())

    @property
    def speed(self) -> float:
        """FLOPs per second of one GPU."""
        return RATES[self.cfg.model.architecture].share * PEAK

    @property
    def eaten(self) -> float:
        """Samples per second that one GPU trains on."""
        return self.speed / TRAINED / self.model.flops

    @property
    def fed(self) -> float:
        """Share of that which its readers deliver."""
        if self.cfg.data.kind != "images":
            return 1.0
        return min(1.0, READERS * IMAGES_A_CORE / self.eaten)

    def hours(self, flops: float, gpus: int) -> float:
        return flops / (self.speed * self.fed * gpus * EFFICIENCY[gpus]) / 3600

    def memory_gb(self, step: Step, gpus: int) -> float:
        """Of each GPU: weights and moments, whole in each (sharded where they would not fit), and
        what one part of the batch leaves for the backward pass."""
        model, cfg = self.model, step.cfg
        weights = self.parameters * (FP32 if step.stage.parts else TRAINED_BYTES)
        part = max(1, cfg.batch_size // max(cfg.accumulate, gpus))  # samples at a time
        neurons = (5 if model.gated else 4) * model.d_ff
        kept = model.layers * (16 * model.d_model + neurons) * BF16 + model.classes * LOGIT_BYTES
        return (weights + part * model.tokens * kept) / GB

    @property
    def disk_gb(self) -> float:
        """Of the source, what is prepared of it, all stages' models, and the largest state."""
        tokens = self.samples * self.cfg.data.length if self.cfg.data.kind == "corpus" else 0
        models = len(self.steps) * self.parameters * FP32
        state = self.parameters * SAVED_BYTES
        return self.source.gigabytes + (2 * FP32 * tokens + FP32 * tokens + models + state) / GB


def transformer(task: str, cfg: Any) -> Transformer:
    """The sizes that the cost of a task's dense model follows from."""
    model, data = cfg.model, cfg.data
    sizes = {key: getattr(model, key) for key in ("layers", "d_model", "d_ff")}
    if data.kind == "images":
        patches = (data.image_size // model.patch_size) ** 2
        outside = 2 * patches * 3 * model.patch_size**2 * model.d_model
        outside += 2 * model.d_model * CLASSES[task]
        return Transformer(tokens=patches + 1, outside=outside, **sizes)
    words = WORDS[model.architecture] if data.kind == "corpus" else 0
    heads = getattr(model, "key_value_heads", None)
    d_kv = heads * model.head_dim if heads else None
    return Transformer(
        tokens=data.length, classes=words, d_kv=d_kv, gated=model.architecture == "gemma", **sizes
    )


def parameters(cfg: Any) -> int:
    """Of a dense model, biases and norms left out."""
    model = cfg.model
    heads = getattr(model, "key_value_heads", model.heads)
    d_kv = heads * getattr(model, "head_dim", model.d_model // model.heads)
    maps = 3 if model.architecture == "gemma" else 2
    block = 2 * model.d_model * (model.d_model + d_kv) + maps * model.d_model * model.d_ff
    return model.layers * block + WORDS.get(model.architecture, 1000) * model.d_model


def experiments(works: list[Work]) -> str:
    """What each experiment takes."""
    rows = []
    for work in works:
        trained = sum(map(work.flops, work.trainings))
        total = trained + work.evaluated_flops
        largest = max(work.trainings, key=lambda step: work.memory_gb(step, 8))
        rows.append(
            [
                work.task,
                f"{len(work.trainings)}",
                millions(sum(map(work.seen, work.trainings))),
                short(total / 1e18),
                f"{work.evaluated_flops / total:.1%}",
                short(work.hours(total, 1)),
                short(work.hours(total, 8)),
                f"{work.memory_gb(largest, 8):.0f} GB",
                f"{work.disk_gb:,.0f} GB",
            ]
        )
    head = ["experiment", "trainings", "samples", "exaFLOPs", "of these measuring"]
    head += ["hours, 1 GPU", "hours, 8 GPUs", "of each GPU's memory", "disk"]
    return markdown(head, rows)


def longest(works: list[Work]) -> str:
    """Each experiment's longest training."""
    rows = []
    for work in works:
        step = max(work.trainings, key=work.flops)
        rows.append(
            [
                work.task,
                step.stage.name,
                millions(work.seen(step)),
                f"{step.cfg.steps(work.samples):,}",
                short(work.hours(work.flops(step), 1)),
                short(work.hours(work.flops(step), 8)),
                f"{work.memory_gb(step, 1):.0f} GB",
                f"{work.memory_gb(step, 8):.0f} GB",
            ]
        )
    head = ["experiment", "stage", "samples", "steps", "hours, 1 GPU", "hours, 8 GPUs"]
    return markdown(head + ["memory of 1 GPU", "of each of 8"], rows)


def rates(works: list[Work]) -> str:
    """How fast a GPU is, and what feeds it."""
    rows = []
    for work in works:
        rate, unit = RATES[work.cfg.model.architecture], {"images": "images"}
        name, each = unit.get(work.cfg.data.kind, "tokens"), 1
        if name == "tokens":
            each = work.model.tokens
        cores = f"{work.eaten / IMAGES_A_CORE:.0f}" if name == "images" else "below 0.1"
        rows.append(
            [
                work.task,
                f"{work.model.flops / 1e9:.4g}",
                f"{rate.share:.0%}",
                rate.source,
                f"{work.eaten * each:,.0f} {name}/s",
                cores,
            ]
        )
    for name, share in forward_shares().items():
        rows.append([name, "", f"{share:.0%}", "measured: forwards alone, on an H200", "", ""])
    head = ["experiment", "GFLOPs, one forward", "of the peak", "whence"]
    return markdown(head + ["a GPU eats", "cores that feed it"], rows)


def forward_shares() -> dict[str, float]:
    """The share of the peak that dense models reached on an H200 in bf16, without gradients."""
    sizes = {"layers": 12, "d_model": 768, "d_ff": 3072}
    outside = 2 * 196 * 3 * 16**2 * 768 + 2 * 768 * 1000
    models = {
        ("vit-b-16", "256"): Transformer(tokens=197, outside=outside, **sizes),
        ("bert-base", "64"): Transformer(tokens=128, **sizes),
    }
    found = {}
    with open(ROOT / "results/reference/h200/model.csv", newline="") as file:
        for row in csv.DictReader(file):
            key = row["model"], row["batch"]
            if row["backend"] == "dense_compiled" and key in models:
                flops = models[key].flops * int(row["batch"])
                found[row["model"]] = flops / (float(row["median_ms"]) / 1e3) / PEAK
    return found


def short(number: float) -> str:
    """Two digits that count, or all before the point."""
    return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"


def millions(samples: float) -> str:
    return f"{short(samples / 1e6)} M"


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """A table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
