"""What a model is asked to do on a person's data: its batches, and the loss on them.

| kind of model | batches | loss |
| --- | --- | --- |
| causal | texts | of the next token |
| masked | texts, 15 % of the tokens hidden, the same ones in every pass | of the hidden tokens |
| seq2seq | texts, and those to be written | of the written tokens |
| classifier | texts or images, and their classes, or the original's decisions | cross-entropy |
| embedder | texts or images, and the original's embeddings | 1 − the cosine to these |

Labels make an embedder a classifier where it is measured: a linear head, fitted to the original's
embeddings of training samples, reads its embeddings, and is not fitted anew to a converted model's.
"""

import json
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from d2dmoe.api.batch import Batch
from d2dmoe.api.batches import as_batches
from d2dmoe.api.task_loss import logits_of
from d2dmoe.cli.embeddings import (
    EmbeddingClassifier,
    Pool,
    distance,
    first_token,
    fit_head,
    mean_of_tokens,
)
from d2dmoe.cli.encoders import Inputs, Texts
from d2dmoe.cli.models import open_model
from d2dmoe.cli.opened import Loading, Opened
from d2dmoe.cli.output import Shown
from d2dmoe.cli.samples import Data, Row, SplitName
from d2dmoe.errors import UserError
from d2dmoe.lookup import look_up
from d2dmoe.moe import MoE
from d2dmoe.surgery import find

HIDDEN = 0.15  # of the tokens, as BERT was trained
Encoded = tuple[list[Row], Inputs]  # rows, and the model's inputs made of them


@contextmanager
def every_expert(model: nn.Module) -> Iterator[None]:
    """Let a converted model run all of its experts."""
    selections = [moe.selection for moe in find(model, MoE).values()]
    points = [(selection.rule, selection.value) for selection in selections]
    try:
        for selection in selections:
            selection.rule, selection.value = "dynamic_k", 0.0
        yield
    finally:
        for selection, (rule, value) in zip(selections, points, strict=True):
            selection.rule, selection.value = rule, value


@dataclass(frozen=True)
class Source:
    """A model, and the data that it is used on."""

    opened: Opened
    reference: nn.Module  # the model as it was before its conversion
    data: Data
    batch_size: int

    def encoded(self, split: SplitName) -> Iterator[Encoded]:
        """Batches of rows of like lengths, which need little padding, in an order of the seed."""
        rows = sorted(self.data.split(split), key=lambda row: len(str(row.content)))
        starts = list(range(0, len(rows), self.batch_size))
        random.Random(self.data.seed).shuffle(starts)
        for start in starts:
            batch = rows[start : start + self.batch_size]
            yield batch, self.opened.encode([row.content for row in batch])

    def answers(self, encoded: list[Encoded], of: Callable[[Any, Batch], Tensor]) -> list[Tensor]:
        """What `of` makes of the reference's outputs and each batch, [batch, …] on the CPU."""
        inputs = Shown([inputs for _, inputs in encoded], "the original's answers")
        with torch.no_grad(), every_expert(self.reference):
            return [
                of(batch.outputs(self.reference), batch).cpu()
                for batch in as_batches(inputs, self.reference)
            ]


@dataclass(frozen=True)
class Task:
    """Batches, and the loss of a model on them."""

    batches: list[Any]
    loss: Callable[[Any, Any], Tensor] | None  # None: the model's own
    about: str  # what the loss is of, and what is counted as right
    on: Callable[[nn.Module], nn.Module] = lambda model: model  # what the batches are given to
    starts_at_0: bool = False  # the loss with every expert on is 0


def source_of(
    model: str, data: Data, batch_size: int, how: Loading, against: str | None = None
) -> Source:
    """A model by its name and, if it was converted, the one that it was made of.

    Raises:
        UserError: a model cannot be loaded, or the two do not give the same kind of outputs.
    """
    opened = open_model(model, how)
    original = opened if against is None else open_model(against, how)
    if original.kind != opened.kind:
        raise UserError(
            f"--against {against} is a model of the kind {original.kind}, {model} of the kind "
            f"{opened.kind}. Give the model that {model} was made of."
        )
    return Source(opened, original.model, data, batch_size)


def training(source: Source) -> Task:
    """What the model is trained on."""
    return look_up(TASKS, source.opened.kind, "kind of model")(source, "train")


def measuring(source: Source, split: SplitName) -> Task:
    """What the model is measured on."""
    if source.opened.kind == "embedder" and source.data.label is not None:
        return _read_embeddings(source, split)
    return look_up(TASKS, source.opened.kind, "kind of model")(source, split)


def _causal(source: Source, split: SplitName) -> Task:
    return Task([inputs for _, inputs in source.encoded(split)], None, "loss of the next token")


def _masked(source: Source, split: SplitName) -> Task:
    from transformers import DataCollatorForLanguageModeling

    encoded = list(source.encoded(split))
    tokenizer = source.opened.kept["tokenizer"]
    hide = DataCollatorForLanguageModeling(tokenizer, mlm_probability=HIDDEN, seed=source.data.seed)
    batches = []
    for rows, inputs in encoded:
        texts = [{name: value[i] for name, value in inputs.items()} for i in range(len(rows))]
        batches.append(dict(hide(texts)))
    return Task(batches, None, f"loss of tokens that were hidden, {HIDDEN:.0%} of all")


def _seq2seq(source: Source, split: SplitName) -> Task:
    if source.data.label is None:
        raise UserError(
            f"{source.opened.name} writes texts: say which column holds those that it should "
            "write, with --label-column."
        )
    batches, encode = [], source.opened.encode
    if not isinstance(encode, Texts):
        raise UserError(f"{source.opened.name} does not read texts. Use the library.")
    for rows, inputs in source.encoded(split):
        written = encode.written([str(row.label) for row in rows])
        real = written["attention_mask"].bool()
        batches.append(inputs | {"labels": written["input_ids"].masked_fill(~real, -100)})
    return Task(batches, None, "loss of the tokens to be written")


def _classifier(source: Source, split: SplitName) -> Task:
    encoded = list(source.encoded(split))
    numbers = _class_numbers(source, encoded)
    if numbers is None:
        labels = source.answers(encoded, _decisions)
        about = "agreement with the original's decisions"
    else:
        labels = [torch.tensor([numbers[str(row.label)] for row in rows]) for rows, _ in encoded]
        about = "accuracy on the labels"
    return Task(_with(encoded, labels), None, about)


def _decisions(outputs: Any, _batch: Batch) -> Tensor:
    logits = logits_of(outputs)
    if logits is None:
        raise UserError("the model gives no logits, so it decides nothing")
    return logits.argmax(-1)  # int64 [batch]


def _class_numbers(source: Source, encoded: list[Encoded]) -> dict[str, int] | None:
    """The model's number of each label; None where there are no labels, or the names of image
    folders are not the model's classes.

    Raises:
        UserError: the labels of a column are not the model's classes.
    """
    found = {row.label for rows, _ in encoded for row in rows}
    known = {name: i for i, name in enumerate(source.opened.classes)}
    by_number = {str(i): i for i in known.values()}
    for numbers in (known, by_number):
        if found <= numbers.keys():
            return numbers
    if source.data.label is None:
        return None
    wrong = ", ".join(sorted(map(str, found - known.keys()))[:5])
    raise UserError(
        f"the label column '{source.data.label}' holds {wrong}, which are no classes of "
        f"{source.opened.name}: {', '.join(list(known)[:20]) or 'their names are unknown'}. Choose "
        "another with --label-column; without it the model is held to its own decisions."
    )


def _embedder(source: Source, split: SplitName) -> Task:
    encoded, pool = list(source.encoded(split)), pooling(source.opened)
    batches = _with(encoded, source.answers(encoded, pool))
    about = "1 − the cosine to the original's embedding"
    return Task(batches, distance(pool), about, starts_at_0=source.reference is source.opened.model)


def _read_embeddings(source: Source, split: SplitName) -> Task:
    pool, trained = pooling(source.opened), list(source.encoded("train"))
    features = torch.cat(source.answers(trained, pool)).float()
    classes = sorted({str(row.label) for rows, _ in trained for row in rows})
    if len(classes) < 2:
        raise UserError(
            f"the label column '{source.data.label}' holds one class only, {classes[0]}."
        )
    numbers = {name: number for number, name in enumerate(classes)}

    def labels(rows: list[Row]) -> Tensor:
        return torch.tensor([numbers.get(str(row.label), -100) for row in rows])

    head = fit_head(features, torch.cat([labels(rows) for rows, _ in trained]), len(classes))
    head.to(next(source.opened.model.parameters()).device)
    encoded = list(source.encoded(split))
    batches = _with(encoded, [labels(rows) for rows, _ in encoded])
    about = (
        f"accuracy of a linear head on {len(classes)} classes, fitted to the original's embeddings "
        f"of {len(features)} training samples"
    )
    return Task(batches, None, about, partial(EmbeddingClassifier, pool=pool, head=head))


def _with(encoded: list[Encoded], targets: list[Tensor]) -> list[tuple[Inputs, Tensor]]:
    return [(inputs, target) for (_, inputs), target in zip(encoded, targets, strict=True)]


def _other(source: Source, split: SplitName) -> Task:
    raise UserError(
        f"{source.opened.name} is a {type(source.opened.model).__name__}, for which the command "
        f"line knows no loss; it knows {', '.join(list(TASKS)[:-1])}. Use the library, with a loss "
        "of your own."
    )


TASKS: dict[str, Callable[[Source, SplitName], Task]] = {
    "causal": _causal,
    "masked": _masked,
    "seq2seq": _seq2seq,
    "classifier": _classifier,
    "embedder": _embedder,
    "other": _other,
}


def pooling(opened: Opened) -> Pool:
    """How an embedding is made of tokens: as sentence-transformers' file says, else their mean."""
    file = opened.companion("1_Pooling/config.json")
    options = json.loads(file.read_text(encoding="utf-8")) if file else {}
    return first_token if options.get("pooling_mode_cls_token") else mean_of_tokens
