"""What sparsity enforcement did: a saved model's active neurons on a whole split (figure 2b)."""

from pathlib import Path

from d2dmoe.activity import count_active
from d2dmoe.checkpoint import load_dense_model
from d2dmoe.data.splits import open_split
from d2dmoe.jobs.run import Run
from d2dmoe.processes import told
from d2dmoe.quality import own_batches


def activity(model_path: Path, split: str, batch_size: int, run: Run) -> list[dict]:
    """How many neurons of each layer are active, over all tokens of a split.

    Returns:
        Rows layer, active, d_ff, tokens: how many tokens have that many active neurons.
    """
    model, _spec = load_dense_model(model_path)
    batches = own_batches(open_split(run.data, split), batch_size, run.device)
    histogram = sum(told(count_active(model.to(run.device), (inputs for inputs, _ in batches))))
    return [
        {"layer": layer, "active": active, "d_ff": len(row) - 1, "tokens": tokens}
        for layer, row in enumerate(histogram.tolist())
        for active, tokens in enumerate(row)
        if tokens
    ]
