"""What torch's tools do with models: a converted one is saved, copied, replicated and exported."""

import copy
import pickle
from multiprocessing.reduction import ForkingPickler

import pytest
import torch
from small import make_dense, make_inputs, make_routed, make_split
from torch import nn

from d2dmoe.ffn import FFN
from d2dmoe.moe import MoE, set_selection
from d2dmoe.surgery import find

STAGES = {"dense": make_dense, "split": make_split, "routed": make_routed}


@pytest.fixture(params=["split", "routed"])
def converted(request) -> nn.Module:
    model = STAGES[request.param]()
    set_selection(model, "dynamic_k", 0.5)
    return model


def outputs(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(make_inputs())


def test_a_whole_model_is_saved_copied_and_sent_to_processes(converted, tmp_path):
    torch.save(converted, tmp_path / "model")
    loaded = torch.load(tmp_path / "model", weights_only=False)
    spawned = pickle.loads(ForkingPickler.dumps(converted))  # as it goes to other processes
    for other in (loaded, spawned, copy.deepcopy(converted)):
        assert torch.equal(outputs(other), outputs(converted))
        assert other.state_dict().keys() == converted.state_dict().keys()


def replica(module: nn.Module) -> nn.Module:
    """As `nn.parallel.replicate` makes them: parameters become plain tensors."""
    twin = module._replicate_for_data_parallel()
    for name, child in module._modules.items():
        twin._modules[name] = None if child is None else replica(child)
    for name, parameter in module._parameters.items():
        if parameter is None:
            twin._parameters[name] = None
        else:
            setattr(twin, name, parameter.clone())
    for name, buffer in module._buffers.items():
        twin._buffers[name] = buffer
    return twin


def test_replicas_for_several_devices_compute_the_same_and_hand_gradients_back(converted):
    twin = replica(converted)
    assert torch.equal(outputs(twin), outputs(converted))
    twin(make_inputs()).sum().backward()
    for moe in find(converted, MoE).values():
        assert moe.up.grad.any() and moe.down_bias.grad.any()


@pytest.mark.workflow
@pytest.mark.parametrize("backend", ["auto", "dense", "dynamic_k"])
def test_a_converted_model_is_exported(backend):
    model = make_routed()
    set_selection(model, "dynamic_k", 0.5)
    for moe in find(model, MoE).values():
        moe.backend.name = backend
    with torch.no_grad():
        exported = torch.export.export(model, (make_inputs(),)).module()
    others = make_inputs(seed=7)
    with torch.no_grad():
        torch.testing.assert_close(exported(others), model(others))


def test_weights_of_another_stage_are_refused():
    states = {name: make().state_dict() for name, make in STAGES.items()}
    for one, make in STAGES.items():
        for other, state in states.items():
            if one == other:
                make().load_state_dict(state)
            else:
                with pytest.raises(RuntimeError, match=r"(Missing|Unexpected) key"):
                    make().load_state_dict(state)


def test_weights_of_other_experts_are_refused():
    state = make_split(num_experts=4).state_dict()
    with pytest.raises(RuntimeError, match="size mismatch for .*up"):
        make_split(num_experts=8).load_state_dict(state)


def test_loaded_weights_are_used_at_once():
    model, other = make_routed(seed=0), make_routed(seed=1)
    set_selection(model, "dynamic_k", 0.5)
    set_selection(other, "dynamic_k", 0.5)
    assert not torch.equal(outputs(model), outputs(other))
    model.load_state_dict(other.state_dict())
    assert torch.equal(outputs(model), outputs(other))
    assert not find(model, FFN)
