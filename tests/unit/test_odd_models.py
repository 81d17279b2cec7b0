"""Laws of models and calls that nobody thinks of: right, or refused in one message that names the
cause. The model is as it was after every refusal."""

import pytest
import torch
from torch import nn
from torch.nn.functional import gelu, linear
from torch.nn.utils import prune, spectral_norm

import d2dmoe
from d2dmoe.api.losses import RouterLoss
from d2dmoe.discovery.ffns import adopt_ffns
from d2dmoe.discovery.trace import Example
from d2dmoe.errors import UserError
from d2dmoe.ffn import FFN
from d2dmoe.moe import MoE
from d2dmoe.surgery import find

D, D_FF = 16, 32


class Mlp(nn.Module):
    """Its activation is called in its forward, and is no module."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(D, D_FF), nn.Linear(D_FF, D)

    def forward(self, x):
        return self.fc2(gelu(self.fc1(x)))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.mlps, self.head = nn.ModuleList([Mlp(), Mlp()]), nn.Linear(D, 3)

    def forward(self, x):
        for mlp in self.mlps:
            x = x + mlp(x)
        return self.head(x.mean(1))


class Adapted(nn.Module):
    """A linear map with an adapter of low rank, as PEFT's."""

    def __init__(self, base: nn.Linear):
        super().__init__()
        self.base_layer, self.down = base, nn.Linear(base.in_features, 2, bias=False)
        self.up = nn.Linear(2, base.out_features, bias=False)

    weight = property(lambda self: self.base_layer.weight)
    bias = property(lambda self: self.base_layer.bias)

    def forward(self, x):
        return self.base_layer(x) + self.up(self.down(x))


class Int8(nn.Module):
    def __init__(self, of: nn.Linear, name: str):
        super().__init__()
        self.name = name
        self.register_buffer(name, (100 * of.weight.detach()).to(torch.int8))

    def forward(self, x):
        return linear(x, getattr(self, self.name) / 100)


class Counting(nn.Linear):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x) + self.calls


def images(samples: int = 4) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(samples, 5, D)


def converted() -> nn.Module:
    return d2dmoe.convert(Model().eval(), num_experts=4, example=images())


def test_an_activation_that_a_small_block_calls_is_known_by_its_numbers():
    model = Model()
    adopt_ffns(model, Example((images(),), {}))
    assert [ffn.activation_name for ffn in find(model, FFN).values()] == ["gelu", "gelu"]


def changed(change) -> nn.Module:
    """A model whose maps were changed."""
    model = Model().eval()
    for mlp in model.mlps:
        change(mlp)
    return model


def pruned(mlp: Mlp) -> None:
    prune.l1_unstructured(mlp.fc1, "weight", 0.3)


def adapted(mlp: Mlp) -> None:
    mlp.fc1, mlp.fc2 = Adapted(mlp.fc1), Adapted(mlp.fc2)


def int8(name: str):
    def change(mlp: Mlp) -> None:
        mlp.fc1, mlp.fc2 = Int8(mlp.fc1, name), Int8(mlp.fc2, name)

    return change


def holding(value: float, name: str):
    def change(model: nn.Module) -> nn.Module:
        with torch.no_grad():
            model.get_parameter(name).view(-1)[0] = value
        return model

    return change


def counting(model: Model) -> Model:
    model.head = Counting(D, 3)
    return model


def compiled(part: nn.Module) -> None:
    part.compile(backend="eager")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: changed(lambda mlp: spectral_norm(mlp.fc1)), "computed of others .*weight_orig"),
        (lambda: changed(pruned), "computed of others .*weight_orig"),
        (lambda: changed(adapted), "computed of others .*merge"),
        (lambda: changed(int8("weight")), "quantised"),
        (lambda: changed(int8("qweight")), "mlps.0.fc1 and others are quantised"),
        (lambda: changed(compiled), "mlps.0 is compiled"),
        (lambda: torch.jit.trace(Model().eval(), images()), "TorchScript"),
        (lambda: holding(float("nan"), "mlps.0.fc1.weight")(Model()), "mlps.0.fc1: its weights"),
        (lambda: holding(float("inf"), "mlps.0.fc2.bias")(Model()), "mlps.0.fc1: its weights"),
        (lambda: holding(float("nan"), "head.weight")(Model()), "the model gives NaN"),
        (lambda: counting(Model()), "other outputs at every call"),
    ],
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_what_cannot_be_taken_over_is_refused_by_its_cause(make, reason):
    model = make()
    before = {name: type(module) for name, module in model.named_modules()}
    with pytest.raises(UserError, match=reason):
        d2dmoe.convert(model, num_experts=4, example=images())
    assert {name: type(module) for name, module in model.named_modules()} == before


CALLS = {
    "inspect": lambda model: d2dmoe.inspect(model, [images()]),
    "convert": lambda model: d2dmoe.convert(model, 8),
    "sparsify": lambda model: d2dmoe.sparsify(model, [images()], steps=1, lr=1.0, alpha=1.0),
    "train_routers": lambda model: d2dmoe.train_routers(model, [images()], steps=1),
    "imitate_projections": lambda model: d2dmoe.imitate_projections(model, [images()], steps=1),
    "calibrate": lambda model: d2dmoe.calibrate(model, [images()], flops_ratio=0.5),
    "evaluate": lambda model: d2dmoe.evaluate(model, [images()]),
    "save_pretrained": lambda model: d2dmoe.save_pretrained(model, "nowhere"),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("model", [None, Model, {"weight": torch.ones(1)}], ids=str)
def test_what_is_no_module_is_refused(name, model):
    with pytest.raises(UserError, match="a torch module is needed"):
        CALLS[name](model)


@pytest.mark.parametrize("name", ["inspect", "sparsify", "imitate_projections", "evaluate"])
def test_weights_on_the_meta_device_are_refused(name):
    with pytest.raises(UserError, match="meta device"):
        CALLS[name](Model().to("meta"))


@pytest.mark.parametrize("size", ["8", 8.0, True, 0, -8])
def test_sizes_are_whole_numbers(size):
    for option in ("expert_size", "num_experts"):
        with pytest.raises(UserError, match=f"{option} = {size!r}"):
            d2dmoe.convert(Model(), example=images(), **{option: size})


@pytest.mark.parametrize("roles", [None, 3, "q", [["q"]]])
def test_roles_are_a_list(roles):
    with pytest.raises(UserError, match="roles of projections are a list"):
        d2dmoe.convert(Model(), 8, attention=roles, example=images())


@pytest.mark.parametrize(
    ("batch", "reason"),
    [
        (images()[..., 1:], r"Model cannot be called with a batch of x? ?\[4, 5, 15\]"),
        ({"x": images()[0]}, r"a batch of x \[5, 16\]"),
        (images().to("meta"), "meta device"),
        (images().to_sparse(), "nested or sparse"),
    ],
)
@pytest.mark.parametrize("call", ["inspect", "train_routers", "evaluate"])
def test_batches_that_the_model_cannot_take_are_refused(call, batch, reason):
    options = {"train_routers": {"steps": 1, "width": 4}}.get(call, {})
    with pytest.raises(UserError, match=reason):
        getattr(d2dmoe, call)(converted(), [batch], **options)


def test_losses_are_functions_and_folders_are_paths(tmp_path):
    with pytest.raises(UserError, match="loss must be a function"):
        d2dmoe.evaluate(converted(), [images()], loss="cross_entropy")
    (tmp_path / "file").touch()
    for folder, reason in ((tmp_path / "file", "cannot be made"), (None, "a path or as text")):
        with pytest.raises(UserError, match=reason):
            d2dmoe.save_pretrained(converted(), folder)
    with pytest.raises(UserError, match="a path or as text"):
        d2dmoe.from_pretrained(None)
    folder = d2dmoe.save_pretrained(converted(), tmp_path / "folder")
    for options, reason in (
        ({"model": Model().to("meta")}, "meta device"),
        ({"model": "Model"}, "a torch module is needed"),
        ({"dtype": "bfloat16"}, "must be one of torch's"),
    ):
        with pytest.raises(UserError, match=reason):
            d2dmoe.from_pretrained(folder, **options)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"tokenizer": "gpt2"}, "tokenizer must be one of transformers"),
        ({"image_processor": 3}, "image_processor must be one of transformers"),
        ({"evaluation": "good"}, "evaluation must be what d2dmoe.evaluate gave"),
        ({"max_shard_size": "5 apples"}, "max_shard_size = '5 apples'"),
        ({"max_shard_size": 0}, "max_shard_size = 0"),
    ],
)
def test_what_is_saved_beside_a_model_is_checked_before(options, reason, tmp_path):
    with pytest.raises(UserError, match=reason):
        d2dmoe.save_pretrained(converted(), tmp_path, **options)
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="repo_id"):
        d2dmoe.push_to_hub(converted(), None)


@pytest.mark.parametrize(
    "option", [{"seed": "x"}, {"seed": -1}, {"seed": None}, {"steps": True}, {"steps": 1.0}]
)
def test_steps_and_seeds_of_trainings_are_whole_numbers(option):
    batches, options = [(images(), torch.tensor([0, 1, 2, 0]))], {"steps": 1} | option
    for call in (
        lambda: d2dmoe.train_routers(converted(), batches, width=4, **options),
        lambda: d2dmoe.sparsify(Model(), batches, lr=1e-3, alpha=0.1, **options),
        lambda: d2dmoe.imitate_projections(Model(), [images()], **options),
    ):
        with pytest.raises(UserError, match=f"{next(iter(option))} = .* whole number"):
            call()


@pytest.mark.parametrize("loss", [lambda outputs: outputs, lambda outputs, batch: 1 / 0])
def test_a_loss_that_fails_is_named_with_its_cause(loss):
    batches = [(images(), torch.tensor([0, 1, 2, 0]))]
    for call in (
        lambda: d2dmoe.evaluate(converted(), batches, loss=loss),
        lambda: d2dmoe.sparsify(Model(), batches, steps=1, lr=1e-3, alpha=0.1, loss=loss),
    ):
        with pytest.raises(UserError, match=r"loss\(outputs, batch\) fails") as caught:
            call()
        assert type(caught.value.__cause__).__name__ in str(caught.value)


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"alpha": "x"}, "alpha"), ({"alpha": -1}, "or 0"), ({"maps": []}, "at least one of q, k")],
)
def test_options_of_imitation_are_checked(options, reason):
    with pytest.raises(UserError, match=reason):
        d2dmoe.imitate_projections(Model(), [images()], steps=1, **options)


@pytest.mark.workflow
def test_backends_are_chosen_of_batches_of_any_form():
    model, other = converted().train(), Open()
    d2dmoe.convert(other, num_experts=4, example=(images(),))
    for one in (model, other):
        d2dmoe.add_routers(one, "regression", 4)
    for batch in (images(), {"x": images()}, (images(), torch.zeros(4, dtype=torch.int64))):
        choices = d2dmoe.choose_backends(model, batch)
        assert {*choices} == {*d2dmoe.explain_backends(model)} and model.training
        assert all(choice.backend in ("dense", "dynamic_k") for choice in choices.values())
    assert len(d2dmoe.choose_backends(other, images())) == 2
    for call in (d2dmoe.explain_backends, lambda it: d2dmoe.choose_backends(it, images())):
        with pytest.raises(UserError, match="no experts with routers"):
            call(Model())
    with pytest.raises(UserError, match="cannot be called"):
        d2dmoe.choose_backends(model, images()[..., 1:])
    with pytest.raises(UserError, match="no experts"):
        d2dmoe.quantize_experts(Model())


class Open(Model):
    def forward(self, *args, **kwargs):
        return super().forward(*args, **kwargs)


def test_an_example_of_positional_arguments_is_counted_as_it_is():
    named, positional = ({"x": images()}, (images(),))
    costs = {d2dmoe.inspect(Open(), example=x).flops for x in (named, positional)}
    assert len(costs) == 1


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_trainings_have_gradients_whatever_the_callers_mode(mode):
    def trained(model: nn.Module) -> nn.Module:
        batch = (images(), torch.tensor([0, 1, 2, 0]))
        d2dmoe.sparsify(model, [batch], steps=2, lr=1e-3, alpha=0.1)
        d2dmoe.convert(model, num_experts=4)
        d2dmoe.train_routers(model, [batch[0]], steps=1, width=4)
        return model

    expected, model = trained(Model()), Model()
    with mode():
        trained(model)
        for one, other in zip(model.parameters(), expected.parameters(), strict=True):
            assert torch.equal(one, other)


def test_a_model_of_inference_tensors_is_converted_and_not_trained():
    with torch.inference_mode():
        model = Model()
    with pytest.raises(UserError, match="made under torch.inference_mode"):
        d2dmoe.sparsify(model, [(images(), torch.arange(4) % 3)], steps=1, lr=1e-3, alpha=0.1)
    d2dmoe.convert(model, num_experts=4, example=images())
    assert len(find(model, MoE)) == 2


def test_the_default_device_is_the_callers_alone():
    model, batch = Model(), (images(16), torch.arange(16) % 3)
    with torch.device("meta"):
        d2dmoe.inspect(model, [batch[0]])
        d2dmoe.convert(model, num_experts=4, example=batch[0])
    d2dmoe.train_routers(model, [batch[0]], steps=1, width=4)
    with torch.device("meta"):
        assert d2dmoe.evaluate(model, [batch]).samples == 16


def test_an_example_gets_the_models_dtype_where_it_has_to():
    assert d2dmoe.convert(Model().double(), num_experts=4, example=images().float())


class Inner(nn.Module):
    main_input_name = "input_ids"  # as models of transformers have it


class Surrounding(nn.Module):
    """Takes a dict of features, as models of sentence-transformers do."""

    def __init__(self):
        super().__init__()
        self.auto_model = Inner()

    def forward(self, features):
        return self.auto_model(**features)


def test_of_a_model_that_others_surround_the_one_inside_is_named():
    with pytest.raises(UserError, match="Inner inside of it, auto_model"):
        d2dmoe.evaluate(Surrounding(), [{"input_ids": torch.ones(1, 3).long()}])
    with pytest.raises(UserError, match="Inner inside of it, auto_model"):
        d2dmoe.convert(Surrounding())


def test_routers_learn_from_all_processes(monkeypatch):
    """Under DistributedDataParallel, whose own averages leave them out."""
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        plain, wrapped = converted(), nn.parallel.DistributedDataParallel(converted())
        d2dmoe.train_routers(plain, [images()], steps=2, width=4)
        summed = []

        def all_reduce(gradient, group):  # with another process that had the same batches
            summed.append(gradient.mul_(2))

        monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
        monkeypatch.setattr(torch.distributed, "get_world_size", lambda group: 2)
        d2dmoe.train_routers(wrapped, [images()], steps=2, width=4)
    finally:
        torch.distributed.destroy_process_group()
    routers = [p for n, p in plain.named_parameters() if ".router." in n]
    assert len(summed) == 2 * len(routers)
    with RouterLoss(plain) as one, RouterLoss(wrapped.module) as other:
        plain(images()), wrapped.module(images())
        assert torch.equal(one(), other())
