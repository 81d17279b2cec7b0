"""What one job computes on: GPUs, and machines."""

from pydantic import Field

from d2dmoe.config.strict import Strict


class ResourcesConfig(Strict):
    """What a job that trains or measures computes on. Results are the same but for rounding, so
    that a change repeats nothing."""

    gpu: int = Field(
        1,
        gt=0,
        description="GPUs of a machine that a job takes, a process each; without GPUs, processes",
    )
    nodes: int = Field(1, gt=0, description="Machines that a job takes (by SLURM)")
    shard: bool | None = Field(
        None,
        description="Whether each GPU has a part of weights, gradients and optimiser (FSDP2) "
        "instead of a copy (DDP); null: where copies would fill it",
    )
    recompute: bool = Field(
        False,
        description="Whether activations of blocks are computed again for the backward pass "
        "instead of being kept",
    )

    @property
    def processes(self) -> int:
        """Of a job."""
        return self.gpu * self.nodes
