"""Which experts the tokens of a converted model run, for benchmarks that follow them."""

from pathlib import Path

import torch
from torch import Tensor

from d2dmoe.conversion import load_model
from d2dmoe.data import open_split
from d2dmoe.evaluate import batches_of
from d2dmoe.jobs.run import Run
from d2dmoe.moe import MoE, set_selection, watch_selections
from d2dmoe.surgery import find


def record_masks(
    model_path: Path, values: list[float], samples: int, data: Path, run: Run
) -> dict[str, Tensor]:
    """The FFNs' selections at operating points of dynamic-k, on the first test samples.

    Returns:
        bool [layers, tokens, n] for each value, by the name `tau_VALUE`.

    Raises:
        UserError: model or data are not in order.
    """
    model, _spec = load_model(model_path)
    model.to(run.device)
    names = [name for name, moe in find(model, MoE).items() if moe.role == "ffn"]
    inputs, _ = next(batches_of(open_split(data, "test"), samples, run.device))
    recorded = {}
    with torch.inference_mode(), watch_selections(model) as masks:
        for value in values:
            set_selection(model, "dynamic_k", value)
            model(**inputs)
            recorded[f"tau_{value:g}"] = torch.stack([masks[x].flatten(0, -2) for x in names])
    return recorded
