"""Which experts the tokens of a converted model run, for benchmarks that follow them."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from d2dmoe.checkpoint import load_model
from d2dmoe.data.splits import open_split
from d2dmoe.jobs.run import Run
from d2dmoe.kernels import ops  # noqa: F401  a routed model may run by them
from d2dmoe.moe import MoE, set_selection, watch_selections
from d2dmoe.padding import real_tokens, without_padding
from d2dmoe.quality import batches_of
from d2dmoe.surgery import find


def record_masks(model_path: Path, rule: str, cfg: dict[str, Any], run: Run) -> dict[str, Tensor]:
    """The FFNs' selections at operating points of a rule, on the first test samples.

    Args:
        model_path: a converted model.
        rule: its selection rule.
        cfg: `values`, the operating points, and `samples`, how many are read.
        run: device and data.

    Returns:
        bool [layers, tokens, n] for each value, by the value.

    Raises:
        UserError: model or data are not in order.
    """
    model, _spec = load_model(model_path)
    model.to(run.device)
    names = [name for name, moe in find(model, MoE).items() if moe.role == "ffn"]
    inputs, _ = next(batches_of(open_split(run.data, "test"), cfg["samples"], run.device))
    recorded = {}
    with torch.inference_mode(), watch_selections(model) as masks:
        for value in cfg["values"]:
            set_selection(model, rule, value)
            model(**inputs)
            seen = [without_padding(masks[x], real_tokens(inputs)) for x in names]
            recorded[f"{value:g}"] = torch.stack(seen)
    return recorded
