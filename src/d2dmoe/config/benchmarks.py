"""What `snakemake benchmarks` times."""

from typing import Annotated, Literal

from pydantic import Field

from d2dmoe.config.base import Strict

Fraction = Annotated[float, Field(gt=0, le=1)]


class LayerBenchmark(Strict):
    """One layer's shape, and the executed shares to time it at."""

    tokens: int = Field(gt=0, description="Tokens of a call")
    d_model: int = Field(gt=0, description="Width of a token")
    num_experts: int = Field(gt=0, description="Experts")
    expert_size: int = Field(gt=0, description="Hidden neurons of an expert")
    router_width: int = Field(128, gt=0, description="Hidden neurons of the router")
    activation: Literal["relu", "gelu", "gelu_tanh"] = Field("relu", description="Of the experts")
    gated: bool = Field(False, description="Whether the experts have a gate (GLU)")
    dtypes: list[Literal["fp32", "fp16", "bf16"]] = Field(
        ["fp32"], min_length=1, description="Number formats"
    )
    masks: list[Literal["bernoulli", "clustered"]] = Field(
        ["bernoulli"], min_length=1, description="Tokens choose independently, or alike in groups"
    )
    fractions: list[Fraction] = Field(
        [1.0, 0.8, 0.6, 0.4, 0.2, 0.1], min_length=1, description="Executed shares"
    )
    round_s: float = Field(0.1, gt=0, description="Seconds for a backend in each of five rounds")


class BenchmarksConfig(Strict):
    """Wall-clock benchmarks."""

    cpu: dict[str, LayerBenchmark] = Field({}, description="Layers timed on the CPU")
    gpu: dict[str, LayerBenchmark] = Field({}, description="Layers timed on a CUDA device")
