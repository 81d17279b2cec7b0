"""How many experts each token of a few test samples executes, at every operating point.

The figure of load maps has one operating point and many images; here it is few samples, images or
texts, and all operating points.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from d2dmoe.checkpoint import load_model
from d2dmoe.data.splits import open_split
from d2dmoe.inputs import Inputs
from d2dmoe.jobs.run import Run
from d2dmoe.moe import MoE, set_selection, watch_selections
from d2dmoe.padding import real_tokens
from d2dmoe.surgery import find

LONGEST = 64  # tokens of a text that are tabulated, so that the table stays small


def token_load(
    model_path: Path, rule: str, cfg: dict[str, Any], run: Run, tokenizer: Path | None
) -> list[dict]:
    """Executed experts per token of the first test samples.

    Args:
        model_path: a converted model.
        rule: its selection rule.
        cfg: `values`, the rule's operating points, and `samples`, how many.
        run: device and data.
        tokenizer: the task's; None: the samples are images.

    Returns:
        Rows knob, knob_value, sample, position (of a patch in reading order, or of a token), token
        (its text as JSON, which no reader of CSV takes for a number or for nothing; empty of
        patches), experts, num_experts (sums over layers).

    Raises:
        UserError: model or data are not in order.
    """
    model, _spec = load_model(model_path)
    model.to(run.device)
    split = open_split(run.data, "test")
    first = torch.arange(min(cfg["samples"], len(split)))
    inputs, _targets = split.batch(split.read(first), run.device)
    num_experts = sum(moe.num_experts for moe in find(model, MoE).values())
    rows = []
    for value in cfg["values"]:
        set_selection(model, rule, value)
        with torch.inference_mode(), watch_selections(model) as masks:
            model(**inputs)
        executed = torch.stack([mask.sum(-1) for mask in masks.values()]).sum(0)  # [samples, T]
        if tokenizer is None:
            samples = [[("", n) for n in counts[1:]] for counts in executed.tolist()]  # no class
        else:
            samples = _texts(inputs, executed, tokenizer)
        rows += [
            {"knob": rule, "knob_value": value, "sample": sample, "position": position}
            | {"token": token, "experts": experts, "num_experts": num_experts}
            for sample, tokens in enumerate(samples)
            for position, (token, experts) in enumerate(tokens)
        ]
    return rows


def _texts(inputs: Inputs, executed: Tensor, tokenizer: Path) -> list[list[tuple[str, int]]]:
    """Of each text its first tokens, without padding, and what they execute."""
    from tokenizers import Tokenizer

    cutter, ids = Tokenizer.from_file(str(tokenizer)), inputs["input_ids"]
    given = real_tokens(inputs)
    real = torch.ones_like(ids, dtype=torch.bool) if given is None else given
    return [
        [
            (json.dumps(cutter.decode([token], skip_special_tokens=False), ensure_ascii=False), n)
            for token, n in zip(of_text[kept].tolist(), counts[kept].tolist(), strict=True)
        ][:LONGEST]
        for of_text, counts, kept in zip(ids, executed, real, strict=True)
    ]
