"""Offloaded experts on a CUDA device: copies on a stream of their own change no bit."""

import pytest
import torch
from test_offloading import llama, make_stack, tokens

import d2dmoe
from d2dmoe.moe import MoE
from d2dmoe.surgery import find

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
def test_generation_is_the_resident_models(share):
    model = llama().cuda()
    prompt = torch.tensor([[3, 1, 4, 1, 5]], device="cuda")
    how = {"max_new_tokens": 24, "do_sample": False, "pad_token_id": 0}
    how |= {"attention_mask": torch.ones_like(prompt)}
    how |= {"return_dict_in_generate": True, "output_logits": True}
    expected = model.generate(prompt, **how)
    offloaded = d2dmoe.offload(model, share, [{"input_ids": prompt}])
    assert all(moe.up.is_pinned() for moe in find(model, MoE).values())
    for _ in range(3):
        found = model.generate(prompt, **how)
        assert torch.equal(found.sequences, expected.sequences)
        assert all(map(torch.equal, found.logits, expected.logits))
    again = offloaded.restore().generate(prompt, **how)
    assert all(map(torch.equal, again.logits, expected.logits))
    assert all(moe.up.is_cuda for moe in find(model, MoE).values())


@pytest.mark.parametrize("backend", ["dense", "dynamic_k"])
def test_one_token_at_a_time_is_the_resident_stacks(backend):
    model = make_stack(depth=6, gated=True, dtype=torch.bfloat16).cuda()
    for moe in find(model, MoE).values():
        moe.backend.name = backend
        moe.selection.register_forward_hook(lambda *_: None)  # selects by itself, not in the kernel
    calls = [z.cuda() for z in tokens(200, dtype=torch.bfloat16).split(1)]
    with torch.inference_mode():
        expected = [model(z) for z in calls]
        d2dmoe.offload(model, 0.4)
        found = [model(z) for z in calls]
    assert all(map(torch.equal, found, expected))


def test_a_model_that_need_not_fit_moves_without_its_experts():
    model, z = make_stack(), tokens(4)
    d2dmoe.offload(model, 0.5)
    with torch.inference_mode():
        expected = model(z)
        model.cuda()
        torch.testing.assert_close(model(z.cuda()).cpu(), expected, rtol=1e-4, atol=1e-5)
    assert {moe.up.device.type for moe in find(model, MoE).values()} == {"cpu"}
