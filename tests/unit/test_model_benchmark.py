"""Benchmarks of whole models and of decoding: every form is timed, at the shares that it says."""

import copy

import pandas as pd
import pytest
import torch
from small import SPEC, make_images, make_routed, others_later, with_experts, with_routers

from d2dmoe.benchmark import decode, model
from d2dmoe.benchmark.common import width
from d2dmoe.benchmark.decode import decode_rows, decoding_step, per_layer
from d2dmoe.benchmark.float8 import to_float8
from d2dmoe.benchmark.llama import llama, static_step
from d2dmoe.benchmark.masks import nearest
from d2dmoe.benchmark.model import compile_blocks, dense_model, model_rows
from d2dmoe.benchmark.routed import follow, route, to_experts, to_routed
from d2dmoe.checkpoint import save_model
from d2dmoe.config.benchmarks import ModelBenchmark, decode_benchmark
from d2dmoe.figures.wall_clock import draw
from d2dmoe.io.csvfile import write_csv
from d2dmoe.jobs.run import Run
from d2dmoe.kernels.ops import expert_ffn
from d2dmoe.moe import MoE, set_selection, watch_selections
from d2dmoe.stages import masks
from d2dmoe.surgery import find
from d2dmoe.timing import Timing

CPU = torch.device("cpu")
SIZES = {"layers": 2, "d_model": 16, "heads": 2, "d_ff": 64}
MODELS = {
    "vit": {"architecture": "vit", "patch_size": 8} | SIZES,
    "bert": {"architecture": "bert", "positions": 32} | SIZES,
    "gpt2": {"architecture": "gpt2", "positions": 32} | SIZES,
}
TIMED = {"num_experts": 8, "router_width": 8, "fractions": [1.0, 0.25], "round_s": 0.001}
BACKENDS = {"dense_eager", "mlp_equal_flops", "dynamic_k"}


def cfg(kind: str, **options) -> ModelBenchmark:
    text = {"size": 24, "vocab_size": 50, "batches": [4]}
    return ModelBenchmark(model=MODELS[kind], **TIMED | text | options)


def dense(kind: str, d_ff: int = 64) -> torch.nn.Module:
    torch.manual_seed(0)
    return dense_model(cfg(kind).model, d_ff, 24, 50, CPU, torch.float32)


def call_of(kind: str) -> dict:
    """Arguments of the model."""
    torch.manual_seed(1)
    return model._inputs(cfg(kind), 4, CPU, torch.float32)[0]


def logits(module: torch.nn.Module, inputs: dict) -> torch.Tensor:
    with torch.inference_mode():
        out = module(**inputs)
    return getattr(out, "logits", out)


def points(n: int = 8) -> dict[str, torch.Tensor]:
    """Recorded masks of one layer: all experts, and about a third."""
    some = torch.rand(1, 30, n, generator=torch.Generator().manual_seed(0)) < 0.33
    return {"tau_0": torch.ones_like(some), "tau_0.1": some}


@pytest.mark.parametrize("kind", others_later(MODELS, [*MODELS][:1]))
def test_every_form_of_a_model_has_a_row_at_the_wanted_share(kind):
    rows = pd.DataFrame(model_rows("small", cfg(kind, batches=[4, 1]), CPU, {}))
    assert set(rows.columns) == set(model.COLUMNS) and set(rows["backend"]) == BACKENDS
    assert len(rows) == 2 * (1 + 2 * 2)
    assert (rows["tokens"] == rows["batch"] * {"vit": 10}.get(kind, 24)).all()
    shares = rows.loc[rows["backend"] == "dynamic_k", "fraction"]
    assert sorted(shares) == pytest.approx([0.25, 0.25, 1.0, 1.0], abs=0.02)
    assert (rows["median_ms"] > 0).all()


def test_recorded_masks_are_followed_at_the_nearest_operating_point():
    converted = cfg("vit", mask="converted")
    rows = pd.DataFrame(model_rows("small", converted, CPU, points()))
    shares = rows.loc[rows["backend"] == "dynamic_k", "fraction"]
    assert set(rows["mask"]) == {"converted"}
    assert sorted(shares) == pytest.approx([0.33, 1.0], abs=0.05)


def test_a_model_that_follows_masks_runs_its_experts_by_them():
    routed = to_routed(dense("vit"), cfg("vit"))
    masks = nearest(points(), 0.3)
    share = follow(routed, masks, tokens=40)
    expected = copy.deepcopy(routed)
    for moe in find(expected, MoE).values():
        mask = masks[0].repeat(2, 1)[:40]
        moe.run = lambda z, _, moe=moe, mask=mask: expert_ffn(
            z.flatten(0, -2), mask, moe.weights
        ).view_as(z)
    for layer in expected.modules():
        if hasattr(layer, "mask"):
            layer.mask = None
    assert share == pytest.approx(masks.float().mean().item(), abs=0.05)
    assert torch.equal(logits(routed, call_of("vit")), logits(expected, call_of("vit")))


def test_with_all_experts_a_converted_model_equals_a_dense_one_of_their_activation():
    inputs, relu = call_of("gpt2"), dense("gpt2")
    routed = to_routed(copy.deepcopy(relu), cfg("gpt2"))
    for block in relu.transformer.h:
        block.mlp.set_activation("relu")
    with torch.inference_mode():
        assert route(routed, lambda: routed(**inputs), 1.0) == 1.0
    torch.testing.assert_close(logits(routed, inputs), logits(relu, inputs))


def test_a_language_model_attends_as_with_a_mask():
    inputs, module = call_of("gpt2"), dense("gpt2")
    unmasked = logits(module, inputs)
    module.set_attn_implementation("eager")  # always makes a causal mask
    torch.testing.assert_close(unmasked, logits(module, inputs))


@pytest.mark.workflow
@pytest.mark.parametrize("kind", ["vit", "gpt2"])
def test_compiled_blocks_compute_the_same(kind, monkeypatch):
    compiled = torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda self, **k: compiled(self, backend="eager", **k)
    )
    inputs = call_of(kind)
    for module in (dense(kind), to_routed(dense(kind), cfg(kind))):
        expected = logits(module, inputs)
        torch.testing.assert_close(logits(compile_blocks(module), inputs), expected)


@pytest.mark.parametrize("routed", [False, True])
def test_a_decoding_step_gives_what_the_whole_text_gives_every_time(routed):
    module, tokens = dense("gpt2"), call_of("gpt2")["input_ids"]
    if routed:
        module = to_routed(module, cfg("gpt2"))
    with torch.inference_mode():
        step = decoding_step(module, tokens)
        first, second = step(), step()
        whole = module(input_ids=tokens).logits[:, -1:]
    assert torch.equal(first, second)
    torch.testing.assert_close(first, whole)


def test_recorded_masks_are_what_the_model_selects(tmp_path, monkeypatch):
    module, images = make_routed(), make_images(6)
    save_model(tmp_path / "model", module, with_routers(with_experts(SPEC)))
    monkeypatch.setattr(masks, "open_split", lambda _folder, _part: images)
    about = {"values": [0.0, 0.6], "samples": 4}
    found = masks.record_masks(tmp_path / "model", "dynamic_k", about, Run(0, CPU))
    inputs, _ = images.batch(images.read(torch.arange(4)), CPU)
    set_selection(module, "dynamic_k", 0.6)
    with torch.inference_mode(), watch_selections(module) as selected:
        module(**inputs)
    assert found.keys() == {"0", "0.6"} and found["0"].all()
    for recorded, mask in zip(found["0.6"], selected.values(), strict=True):
        assert torch.equal(recorded, mask.flatten(0, 1)) and recorded.dtype == torch.bool


DECODE = {
    "ffn": {"kind": "ffn", "layers": 3, "d_model": 16, "d_ff": 128},
    "step": {"kind": "step", "model": MODELS["gpt2"], "context": 12, "vocab_size": 50},
    "llama": {
        "kind": "llama", "phase": "decode", "layers": 1, "d_model": 16, "heads": 2,
        "key_value_heads": 1, "d_ff": 128, "vocab_size": 50, "context": 12,
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", others_later(DECODE, [*DECODE][:1]))
def test_decoding_is_timed_in_every_form(kind, tmp_path):
    options = TIMED | {"num_experts": 16, "batches": [1, 4]}
    rows = decode_rows("small", decode_benchmark(DECODE[kind] | options), CPU)
    write_csv(tmp_path / "decode.csv", rows, decode.COLUMNS)
    rows = pd.DataFrame(rows)
    assert set(rows["backend"]) == BACKENDS
    assert set(rows["context"]) == {0 if kind == "ffn" else 12}
    shares = rows.loc[rows["backend"] == "dynamic_k", "fraction"]
    assert sorted(shares) == pytest.approx([0.25, 0.25, 1.0, 1.0], abs=0.04)
    figure = draw(pd.read_csv(tmp_path / "decode.csv"), "Decoding")
    assert [axes.get_title().split(",")[1][:8] for axes in figure.axes] == [" batch 1", " batch 4"]


@pytest.mark.parametrize("convert", [None, to_experts])
def test_a_step_on_a_static_cache_gives_what_the_whole_text_gives_every_time(convert):
    llama_cfg = decode_benchmark(DECODE["llama"] | TIMED | {"num_experts": 16, "batches": [2]})
    build, bind = llama(llama_cfg, 2, CPU, torch.float32)
    module = build(128)
    if convert:
        convert(module, llama_cfg)
        set_selection(module, "dynamic_k", 0.4)
    tokens = torch.randint(50, (2, 13))
    with torch.inference_mode():
        step = static_step(module, tokens)
        first, second = step(), step()
        whole = module(input_ids=tokens, use_cache=False).logits[:, -1:]
    assert torch.equal(first, second)
    torch.testing.assert_close(first, whole, rtol=1e-4, atol=1e-5)


def rows_of_eight_bits() -> pd.DataFrame:
    options = TIMED | {"num_experts": 16, "batches": [2], "eight_bits": True, "dtypes": ["bf16"]}
    return pd.DataFrame(decode_rows("small", decode_benchmark(DECODE["ffn"] | options), CPU))


def test_weights_of_eight_bits_are_timed_where_asked():
    rows = rows_of_eight_bits()
    assert set(rows["backend"]) == BACKENDS | {"dense_fp8", "dynamic_k_int8"}
    assert sorted(rows.loc[rows["backend"] == "dynamic_k_int8", "fraction"]) == sorted(
        rows.loc[rows["backend"] == "dynamic_k", "fraction"]
    )


def test_a_gpu_without_fp8_leaves_its_row_out(monkeypatch):
    monkeypatch.setattr(model, "has_float8", lambda _device: False)
    rows = rows_of_eight_bits()
    assert set(rows["backend"]) == BACKENDS | {"dynamic_k_int8"}


def test_a_layer_in_fp8_computes_nearly_the_same():
    torch.manual_seed(0)
    stack = decode_benchmark(DECODE["ffn"] | TIMED | {"batches": [2]})
    build, bind = decode._stack(stack, 2, CPU, torch.bfloat16)
    ffn = build(64)
    with torch.inference_mode():
        expected, found = bind(ffn)(), bind(to_float8(copy.deepcopy(ffn)))()
    assert 0 < (found - expected).norm() < 0.05 * expected.norm()


def test_a_stack_takes_its_layers_times_as_long_as_a_layer():
    assert per_layer(Timing(6.0, 3.0, 9.0, 5.0), 3) == Timing(2.0, 1.0, 3.0, 5.0)


def test_a_width_is_the_share_in_steps_that_products_are_fast_at():
    assert [width(3072, x) for x in (1.0, 0.101, 0.0001)] == [3072, 312, 8]
