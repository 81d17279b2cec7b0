"""The paper's losses for anyone's training loop: the sparsity penalty and the routers' loss.

Each watches a model by hooks while it is attached. A hook keeps little: of each layer a number a
token, or the layer's input. So a step of a loop is forward, loss, backward, as ever.
"""

from contextlib import ExitStack
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from d2dmoe.api.convert import adopted, hooks_followed
from d2dmoe.api.forwards import unwrapped
from d2dmoe.errors import UserError
from d2dmoe.ffn import FFN
from d2dmoe.lookup import look_up
from d2dmoe.moe import MoE
from d2dmoe.padding import watch_padding, without_padding
from d2dmoe.registration import attach
from d2dmoe.router import router_losses
from d2dmoe.sparsity import PENALTIES, Activations, activation_of, displaced
from d2dmoe.surgery import Hook, find


class _Seen(NamedTuple):
    """What one call of a layer brought."""

    name: str  # the layer's
    values: Tensor
    real: Tensor | None  # which tokens are no padding, boolean [batch, tokens]; None: all


class _LastForward:
    """Watches layers of a model while it is attached: what its last forward brought."""

    def __init__(self, model: nn.Module, layers: dict[str, nn.Module]):
        self._model, self._layers = model, layers  # layers by the names of what is judged by them
        self._hooks: ExitStack | None = None  # None: not attached
        self._seen: list[_Seen] = []  # calls of layers, in their order
        self._open = False  # a forward is running: gradient checkpointing calls layers again later

    def attach(self) -> Self:
        """Watch the model's forwards from now on, until `close`; returns itself."""
        if self._hooks is None:
            self._hooks = hooks = ExitStack()
            self._real_tokens = hooks.enter_context(watch_padding(self._model))
            model = self._model
            hooks.callback(model.register_forward_pre_hook(Hook(self._begin)).remove)
            hooks.callback(model.register_forward_hook(Hook(self._end), always_call=True).remove)
            for name, layer in self._layers.items():
                hooks.callback(layer.register_forward_hook(self._hook(name)).remove)
        return self

    def close(self) -> None:
        """Remove all hooks from the model."""
        if self._hooks is not None:
            self._hooks.close()
        self._hooks, self._seen, self._open = None, [], False

    def __enter__(self) -> Self:
        return self.attach()

    def __exit__(self, *_error: object) -> None:
        self.close()

    def _begin(self, model: nn.Module, _inputs: tuple) -> None:
        if getattr(model, "_is_replica", False):
            raise UserError(
                f"{type(self).__name__} cannot watch the copies of torch.nn.DataParallel: use one "
                "process for each GPU (torchrun or accelerate launch), or a single GPU "
                "(CUDA_VISIBLE_DEVICES=0)"
            )
        self._seen, self._open = [], True

    def _end(self, *_: Any) -> None:
        self._open = False

    def _hook(self, name: str) -> Hook:
        def record(layer: nn.Module, inputs: tuple, output: Tensor) -> None:
            values = self._see(layer, inputs[0], output)  # the same when it is computed once more
            if self._open:
                self._seen.append(_Seen(name, values, self._real_tokens()))

        return Hook(record)

    def _see(self, layer: Any, z: Tensor, output: Tensor) -> Tensor:
        """What to keep of one call of a layer."""
        raise NotImplementedError

    def _last(self) -> list[_Seen]:
        """What the last forward brought."""
        kind = type(self).__name__
        if self._hooks is None:
            raise UserError(
                f"{kind} is not attached: use it in `with {kind}(model) as loss:`, or call "
                "`attach()` before the forward and `close()` when the training is over"
            )
        if not self._seen:
            raise UserError(
                f"{kind} has seen no forward: call the model itself (not model.forward) with a "
                "batch before the loss, and torch.compile after attaching"
            )
        return self._seen


class SparsityPenalty(_LastForward):
    """L_s of the last forward: L = L_task + α · L_s (paper section 3.1, equation 1).

    ```python
    with SparsityPenalty(model) as penalty:
        for batch in loader:
            loss = model(**batch).loss + alpha * penalty()
            loss.backward()
    ```

    Make it before the optimizer and before any wrapper (DistributedDataParallel, torch.compile).
    Gradient checkpointing must be of torch's non-reentrant kind, which is transformers' default.
    """

    def __init__(self, model: nn.Module, mode: str = "relu_hoyer", *, example: Any = None):
        """Finds the model's FFNs, as `convert` does, and gives them the mode's activation: ReLU,
        but for modes that keep theirs.

        Args:
            model: a dense model.
            mode: a key of `sparsity.PENALTIES`.
            example: what the model can be called with, to find its FFNs; None: it is made.

        Raises:
            UnknownName: there is no such mode.
            UserError: the model has no FFNs, or they are experts already.
        """
        self.mode, self._measure = mode, look_up(PENALTIES, mode, "penalty").measure
        self._ffns = _prepared(model, mode, example)
        super().__init__(model, {name: ffn.activation for name, ffn in self._ffns.items()})

    def _see(self, layer: Any, pre: Tensor, hidden: Tensor) -> Tensor:  # -> [...], a token each
        with torch.autocast(hidden.device.type, enabled=False):  # squares need float32
            return self._measure(displaced(Activations(pre, hidden, layer.record)).float())

    def __call__(self) -> Tensor:
        """The mean over FFNs and real tokens, plus that over the MLPs of attention projections, a
        float32 scalar; it has gradients where the forward had.

        Raises:
            UserError: there was no forward, or it ran without gradients and they are wanted.
        """
        seen = self._last()
        for layer in seen:
            self._check_gradients(layer)
        kinds: dict[bool, list[Tensor]] = {}
        for x in seen:
            mean = without_padding(x.values[..., None], x.real).mean().to(seen[0].values.device)
            kinds.setdefault(self._ffns[x.name].role == "ffn", []).append(mean)
        return torch.stack([torch.stack(means).mean() for means in kinds.values()]).sum()

    def _check_gradients(self, layer: _Seen) -> None:
        trained = self._ffns[layer.name].activated.weight.requires_grad
        if trained and torch.is_grad_enabled() and not layer.values.requires_grad:
            raise UserError(
                f"the penalty of {layer.name} has no gradient: the last forward ran without "
                "gradients (call the penalty before any evaluation, or under torch.no_grad()), "
                "or gradient checkpointing is of the reentrant kind (use_reentrant=False)"
            )


class RouterLoss(_LastForward):
    """The routers' loss on the layers' inputs in the last forward (section 3.3, equation 3).

    Gradients reach routers alone. The inputs are those of the model as it ran: at the operating
    point τ = 0, a fresh router's, every expert runs, as the paper has it.

    ```python
    with RouterLoss(model) as router_loss:
        for batch in loader:
            with torch.no_grad():
                model(**batch)
            router_loss().backward()
    ```

    Under DistributedDataParallel leave `no_grad` out and freeze all but the routers: it averages
    gradients over processes only after a forward that has some.
    """

    def __init__(self, model: nn.Module):
        """`model`: converted, with routers (`conversion.add_routers`).

        Raises:
            UserError: it is not.
        """
        moes = find(model, MoE)
        if not moes:
            raise UserError(f"{type(model).__name__} has no experts: convert it first")
        if missing := [name for name, moe in moes.items() if moe.router is None]:
            raise UserError(f"{missing[0]} has no router: call add_routers first")
        self._moes, self._routers = moes, {name: moe.router for name, moe in moes.items()}
        super().__init__(model, dict(moes))

    def _see(self, layer: Any, z: Tensor, output: Tensor) -> Tensor:  # -> [..., d_model]
        return z.detach()

    def __call__(self) -> Tensor:
        """The sum over layers of each router's loss, padding left out; a scalar.

        Raises:
            UserError: there was no forward.
        """
        return router_losses(self._inputs(*seen) for seen in self._last())

    def _inputs(self, name: str, z: Tensor, real: Tensor | None) -> tuple[Any, MoE, Tensor]:
        moe = self._moes[name]
        z = without_padding(z, real)  # [tokens, d_model]
        z = z.clone() if z.is_inference() else z
        return self._routers[name], moe, z.to(moe.weights.dtype)


def _prepared(model: nn.Module, mode: str, example: Any) -> dict[str, FFN]:
    """The FFNs of a model, found and with the mode's activation, by name."""
    if unwrapped(model) is not model and not find(model, (FFN, MoE)):
        raise UserError(
            f"the FFNs of {type(unwrapped(model)).__name__} cannot be replaced inside "
            f"{type(model).__name__}: make SparsityPenalty(model) before the model is wrapped"
        )
    with hooks_followed(model), adopted(model, example):
        ffns = find(model, FFN)
        if not ffns:
            raise UserError(
                f"the FFNs of {type(model).__name__} are experts already: make a model sparse "
                "before it is converted"
            )
        for ffn in ffns.values():
            activation = activation_of(mode) or ffn.activation_name
            if activation != ffn.activation_name:
                ffn.set_activation(activation)
    attach(model)
    return ffns
