"""What `snakemake benchmarks` times."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, model_validator

from d2dmoe.config.model import (
    ActivationName,
    GPT2Config,
    ModelConfig,
    TransformerConfig,
    ViTConfig,
)
from d2dmoe.config.strict import Strict

Entry = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$")]  # names files
Fraction = Annotated[float, Field(gt=0, le=1)]
Batches = Annotated[list[Annotated[int, Field(gt=0)]], Field(min_length=1)]


class Timed(Strict):
    """What all benchmarks share: the experts, and the executed shares to time them at."""

    num_experts: int = Field(gt=0, description="Experts")
    router_width: int = Field(128, gt=0, description="Hidden neurons of the router")
    activation: ActivationName = Field("relu", description="Of the experts")
    dtypes: list[Literal["fp32", "fp16", "bf16"]] = Field(
        ["fp32"], min_length=1, description="Number formats"
    )
    fractions: list[Fraction] = Field(
        [1.0, 0.8, 0.6, 0.4, 0.2, 0.1], min_length=1, description="Executed shares"
    )
    round_s: float = Field(0.1, gt=0, description="Seconds for a backend in each of five rounds")


class LayerBenchmark(Timed):
    """One layer's shape. The router that selects exactly a given mask needs a hidden neuron, and of
    each token a number, for every expert."""

    tokens: int = Field(gt=0, description="Tokens of a call")
    d_model: int = Field(gt=0, description="Width of a token")
    expert_size: int = Field(gt=0, description="Hidden neurons of an expert")
    gated: bool = Field(False, description="Whether the experts have a gate (GLU)")
    projection: bool = Field(
        False, description="Whether the experts replace a linear map, as in attention, not an FFN"
    )
    masks: list[Literal["bernoulli", "clustered", "converted"]] = Field(
        ["bernoulli"],
        min_length=1,
        description="Tokens choose independently, alike in groups, or as in a layer of a converted "
        "model: see benchmarks.masks",
    )

    @model_validator(mode="after")
    def _selectable(self):
        for key in ("router_width", "d_model"):
            if getattr(self, key) < self.num_experts:
                raise ValueError(
                    f"{key} = {getattr(self, key)} must be at least num_experts = "
                    f"{self.num_experts}: the router needs it to select exactly a mask"
                )
        if self.gated and self.projection:
            raise ValueError("gated and projection are both true: an MLP in attention has no gate")
        return self

    @property
    def shape(self) -> dict[str, int | str]:
        """The layer, in the columns of the tables."""
        kind = " gated" if self.gated else " projection" if self.projection else ""
        return {
            "tokens": self.tokens,
            "d_model": self.d_model,
            "num_experts": self.num_experts,
            "expert_size": self.expert_size,
            "activation": self.activation + kind,
        }

    @property
    def converted(self) -> bool:
        """Whether it follows recorded selections."""
        return "converted" in self.masks


class ModelBenchmark(Timed):
    """A whole model."""

    model: ModelConfig
    size: int = Field(gt=0, description="Side of an image in pixels, or tokens of a text")
    vocab_size: int = Field(50257, gt=0, description="Tokens that a language model knows")
    batches: Batches = Field(description="Images or texts of a call")
    mask: Literal["router", "converted"] = Field(
        "router",
        description="What each layer's random router selects, or what a converted model selected: "
        "see masks",
    )

    @property
    def converted(self) -> bool:
        """Whether it follows recorded selections."""
        return self.mask == "converted"

    @model_validator(mode="after")
    def _can_be_built(self):
        _check_model(self.model, self.num_experts, self.size, "size")
        if isinstance(self.model, ViTConfig) and self.size % self.model.patch_size:
            raise ValueError(
                f"model.patch_size = {self.model.patch_size} must divide size = {self.size}"
            )
        return self


class StackBenchmark(Timed):
    """FFNs of Gemma's form, one after the other: what batch-1 decoding spends its time on."""

    kind: Literal["ffn"]
    layers: int = Field(gt=0, description="Distinct FFNs; more than the caches hold")
    d_model: int = Field(gt=0, description="Width of a token")
    d_ff: int = Field(gt=0, description="Hidden neurons of an FFN")
    batches: Batches = Field(description="Tokens of a call")
    eight_bits: bool = Field(
        False, description="Also time int8 experts and, where the device has it, a dense fp8 stack"
    )

    @model_validator(mode="after")
    def _experts_divide(self):
        _check_experts(self.num_experts, self.d_ff, "d_ff")
        return self


class StepBenchmark(Timed):
    """One decoding step of a whole model."""

    kind: Literal["step"]
    model: GPT2Config
    vocab_size: int = Field(50257, gt=0, description="Tokens that the model knows")
    context: int = Field(gt=0, description="Earlier tokens, whose keys and values are cached")
    batches: Batches = Field(description="Texts of a call, a token each")

    @model_validator(mode="after")
    def _can_be_built(self):
        _check_model(self.model, self.num_experts, self.context + 1, "context + 1")
        return self


class LlamaBenchmark(Timed):
    """A Llama, compiled whole: its prefill, or one decoding step on a static cache."""

    kind: Literal["llama"]
    phase: Literal["prefill", "decode"] = Field(description="What is timed")
    layers: int = Field(gt=0, description="Transformer blocks")
    d_model: int = Field(gt=0, description="Width of a token")
    heads: int = Field(gt=0, description="Attention heads")
    key_value_heads: int = Field(gt=0, description="Heads of keys and values")
    d_ff: int = Field(gt=0, description="Hidden neurons of an FFN")
    vocab_size: int = Field(gt=0, description="Tokens that the model knows")
    context: int = Field(gt=0, description="Tokens of the prefill, or cached before the step")
    batches: Batches = Field(description="Texts of a call")

    @model_validator(mode="after")
    def _can_be_built(self):
        _check_experts(self.num_experts, self.d_ff, "d_ff")
        if self.d_model % (2 * self.heads) or self.heads % self.key_value_heads:
            raise ValueError(
                f"heads = {self.heads} must divide d_model = {self.d_model} into even widths, and "
                f"key_value_heads = {self.key_value_heads} must divide heads"
            )
        return self


def _check_model(model: TransformerConfig, num_experts: int, length: int, key: str) -> None:
    _check_experts(num_experts, model.d_ff, "model.d_ff")
    if model.weights != "scratch":
        raise ValueError(f"model.weights = {model.weights}: random ones are timed; leave it out")
    if model.activation is not None:
        raise ValueError(f"model.activation = {model.activation}: give the entry's activation")
    positions = getattr(model, "positions", length)
    if length > positions:
        raise ValueError(f"{key} = {length} exceeds model.positions = {positions}")


def _check_experts(num_experts: int, d_ff: int, key: str) -> None:
    if d_ff % num_experts:
        raise ValueError(f"num_experts = {num_experts} must divide {key} = {d_ff}")


DecodeBenchmark = Annotated[
    StackBenchmark | StepBenchmark | LlamaBenchmark, Field(discriminator="kind")
]


def decode_benchmark(values: Mapping[str, Any]) -> DecodeBenchmark:
    """A decoding benchmark of plain values, as rules hand them to scripts."""
    return TypeAdapter(DecodeBenchmark).validate_python(dict(values))


class MasksConfig(Strict):
    """Whose selections are recorded, for layers and models with the mask `converted`."""

    task: str = Field(description="A key of tasks")
    variant: str = Field(description="Of the task, a conversion; its first seed is taken")
    values: list[float] = Field(
        min_length=1, description="Operating points: of the task's select, by the variant's rule"
    )
    samples: int = Field(gt=0, description="Test samples, from the first on")


class BenchmarksConfig(Strict):
    """Wall-clock benchmarks."""

    cpu: dict[Entry, LayerBenchmark] = Field({}, description="Layers timed on the CPU")
    gpu: dict[Entry, LayerBenchmark] = Field({}, description="Layers timed on a CUDA device")
    models: dict[Entry, ModelBenchmark] = Field({}, description="Models timed on a CUDA device")
    decode: dict[Entry, DecodeBenchmark] = Field({}, description="Decoding timed on a CUDA device")
    masks: MasksConfig | None = Field(None, description="Selections of a converted model")
