"""Training on several GPUs: weights copied (DDP) or in parts (FSDP2), batches shared.

    call = share_weights(trained, device, how)
    values = call(losses, batch)            # losses of the whole batch; then backward, as ever

Where there is one process, `call` calls, and nothing else is done. Random draws are those that one
process makes for the whole batch, of which each takes its own rows; batch norms normalise by the
whole batch; `pooling` has the losses.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from d2dmoe.config.resources import ResourcesConfig
from d2dmoe.data.share import Share
from d2dmoe.data.splits import Batch
from d2dmoe.errors import UserError
from d2dmoe.pooling import shared_batches, summed
from d2dmoe.processes import place, told

Call = Callable[..., Any]  # of a function and its arguments
TRAINED_BYTES = 16  # per parameter: fp32 weight, gradient, two moments
FILLED = 0.6  # of a GPU, at most, by these: the rest is for activations


class _Called(nn.Module):
    """Calls functions that compute with the weights of a module, in whatever order, so that DDP
    and FSDP have a forward to begin and end with."""

    def __init__(self, trained: nn.Module):
        super().__init__()
        self.trained = trained

    def forward(self, compute: Callable[..., Any], *arguments: Any) -> Any:
        return compute(*arguments)


def share_weights(trained: nn.Module, device: torch.device, how: ResourcesConfig) -> Call:
    """Let the processes train a module together, in place; before its optimiser is made.

    Args:
        trained: on the device, the same in all processes.
        device: this process's.
        how: whether weights are copied or in parts.

    Returns:
        What calls a function with the module's weights at hand. Where gradients are enabled, those
        of the scalars that it returns are averaged over the processes.
    """
    if place().size == 1:
        return _call
    if not in_parts(trained, device, how):
        copies = DistributedDataParallel(
            _Called(trained),
            find_unused_parameters=True,
            gradient_as_bucket_view=True,
        )
        return partial(_call_copies, copies)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (place().size,))
    for block in blocks_of(trained):
        fully_shard(block, mesh=mesh, reshard_after_forward=False)
    # Not resharded after the forward: losses use weights of blocks outside of them.
    return partial(_call_parts, fully_shard(_Called(trained), mesh=mesh))


def in_parts(trained: nn.Module, device: torch.device, how: ResourcesConfig) -> bool:
    """Whether the processes have parts of the weights: as is asked for, or where copies, with
    gradients and optimiser, would leave little room on the smallest GPU."""
    if how.shard is not None:
        return how.shard
    if device.type != "cuda":
        return False
    needed = TRAINED_BYTES * sum(p.numel() for p in trained.parameters() if p.requires_grad)
    room = torch.cuda.get_device_properties(device).total_memory
    return needed > FILLED * min(told(room))


def _call(compute: Callable[..., Any], *arguments: Any) -> Any:
    return compute(*arguments)


def _call_copies(copies: nn.Module, compute: Callable[..., Any], *arguments: Any) -> Any:
    return copies(compute, *arguments) if torch.is_grad_enabled() else compute(*arguments)


def _call_parts(parts: Any, compute: Callable[..., Any], *arguments: Any) -> Any:
    if torch.is_grad_enabled():
        return parts(compute, *arguments)
    sharded: list[Any] = [module for module in parts.modules() if hasattr(module, "unshard")]
    for module in sharded:
        module.unshard()
    try:
        with ExitStack() as unwatched:  # processes need not make the same calls, as FSDP expects
            for module in sharded:
                unwatched.enter_context(_without_fsdp(module))
            return compute(*arguments)
    finally:
        for module in sharded:
            module.reshard()


@contextmanager
def _without_fsdp(module: nn.Module) -> Iterator[None]:
    """A module whose calls FSDP does not see."""
    every = [(hooks, dict(hooks)) for hooks in (module._forward_pre_hooks, module._forward_hooks)]
    for hooks, before in every:
        for key, hook in before.items():
            if "fsdp" in (getattr(hook, "__module__", None) or ""):
                del hooks[key]
    try:
        yield
    finally:
        for hooks, before in every:
            hooks.clear()
            hooks.update(before)


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The blocks of any model: the members, each with an FFN or experts inside of it, of its lists
    of modules. Empty where it has no such list, or calls what is inside of them (`opens_blocks`).
    """
    parents = (m for m in model.modules() if not getattr(m, "opens_blocks", False))
    members = (child for parent in parents for child in parent.children())
    lists = (m for m in members if isinstance(m, nn.ModuleList | nn.Sequential))
    return [block for own in lists if all(map(_is_block, own)) for block in own]


def _is_block(module: nn.Module) -> bool:
    """By roles, so that what trains a dense model does not depend on experts."""
    return any(getattr(inner, "role", None) == "ffn" for inner in module.modules())


@dataclass(frozen=True)
class Parts:
    """A batch in parts, to save memory, of each of which every process has a share. Weighted by the
    parts' shares of the batch, their gradients add up to its own."""

    sizes: list[int]  # of this process's
    shares: list[float]  # of the batch that all processes' make

    @classmethod
    def of(cls, samples: int, accumulate: int) -> "Parts":
        """Of batches of so many samples.

        Raises:
            UserError: there is not a sample of each part for every process.
        """
        rank, size = place()
        dealt = [len(range(samples)[Share(i, size).run(samples)]) for i in range(size)]
        if size > 1 and min(dealt) < accumulate:
            raise UserError(
                f"a batch of {samples} samples in {accumulate} parts (`accumulate`) is too small "
                f"for {size} processes: ask for fewer (`resources`), or for larger batches"
            )
        sizes = [_sizes(count, accumulate) for count in dealt]
        return cls(sizes[rank], [sum(part) / samples for part in zip(*sizes, strict=True)])

    def split(self, batch: Batch) -> Iterator[tuple[Batch, float]]:
        """The parts of a process's share of a batch, and their shares of the batch."""
        inputs, targets = batch
        split = {name: values.split(self.sizes) for name, values in inputs.items()}
        for index, part in enumerate(targets.split(self.sizes)):
            inputs = {name: parts[index] for name, parts in split.items()}
            yield (inputs, part), self.shares[index]


def _sizes(samples: int, parts: int) -> list[int]:
    """Of equal parts, but for the last; for several processes their number must be the same."""
    whole = torch.arange(samples)
    found = whole.chunk(parts) if place().size == 1 else whole.tensor_split(parts)
    return [len(part) for part in found]


@contextmanager
def whole_batches(trained: nn.Module, how: ResourcesConfig) -> Iterator[None]:
    """Train on shares of batches as one process does on whole ones; and, where it is asked for,
    compute the blocks' activations again in the backward pass instead of keeping them."""
    with ExitStack() as changed:
        changed.enter_context(shared_batches())
        if how.recompute:
            for block in blocks_of(trained):
                again = partial(checkpoint, block.forward, use_reentrant=False)
                changed.enter_context(_with_forward(block, again))
        if place().size > 1:
            for module in trained.modules():
                if isinstance(module, _BatchNorm):
                    changed.enter_context(_with_forward(module, partial(_normalised, module)))
        yield


@contextmanager
def _with_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """A module that does something else when it is called."""
    module.forward = forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        del module.forward


def _normalised(norm: Any, x: Tensor) -> Tensor:
    """What batch norm makes of x, [batch, channels, ...], with the statistics of the whole batch;
    its running ones follow."""
    if not norm.training:
        return type(norm).forward(norm, x)
    values, over = x.float(), [0, *range(2, x.ndim)]
    shape = [1, -1, *[1] * (x.ndim - 2)]
    count = summed(values.new_tensor(float(values[:, 0].numel())))
    mean = summed(values.sum(over)) / count
    centred = values - mean.view(shape)
    variance = summed(centred.square().sum(over)) / count
    if norm.track_running_stats:
        norm.num_batches_tracked += 1
        share = norm.momentum or 1 / float(norm.num_batches_tracked)
        norm.running_mean.lerp_(mean.detach(), share)
        norm.running_var.lerp_(variance.detach() * count / (count - 1), share)
    out = centred * (variance + norm.eps).rsqrt().view(shape)
    if norm.affine:
        out = out * norm.weight.view(shape) + norm.bias.view(shape)
    return out.to(x.dtype)


def whole_draws(trained: nn.Module, inputs: dict[str, Tensor], own: int) -> AbstractContextManager:
    """Dropout as one process draws it for the whole batch, of which each process takes its rows.
    Fused attention on a GPU draws by itself.

    Args:
        trained: where none of it is dropped out, nothing is done.
        inputs: of the model.
        own: this process's samples.
    """
    dropouts = (m for m in trained.modules() if isinstance(m, nn.Dropout) and m.training)
    if place().size == 1 or not any(m.p > 0 for m in dropouts):
        return nullcontext()
    real = inputs.get("attention_mask")
    tokens = own if real is None else int(real.sum())
    samples, real_tokens = zip(*told((own, tokens)), strict=True)
    return _WholeDraws(real_tokens, samples)


class _WholeDraws(TorchDispatchMode):
    """Draws for the rows of all processes, in their order, and keeps this one's.

    Rows are samples, several to each sample, or real tokens.
    """

    def __init__(self, tokens: Sequence[int], samples: Sequence[int]):
        """`tokens` that are real, and `samples`, of each process."""
        super().__init__()
        self.rows = tokens, samples

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is torch.ops.aten.bernoulli_.float:  # dropout on a CPU
            own, *rest = args
            whole, kept = self._whole(own)
            return own.copy_(function(whole, *rest, **kwargs)[kept])
        if function is torch.ops.aten.native_dropout.default and args[2]:  # on a GPU
            x, share, train = args
            whole, kept = self._whole(x)
            mask = function(whole.fill_(1), share, train)[1][kept]
            return x * mask / (1 - share), mask
        return function(*args, **kwargs)

    def _whole(self, own: Tensor) -> tuple[Tensor, slice]:
        """An empty tensor for the rows of all, and where this process's lie in it."""
        rank = place().rank
        tokens, samples = self.rows
        counts = tokens if len(own) == tokens[rank] else samples
        each = len(own) // counts[rank]
        start = each * sum(counts[:rank])
        order = sorted(range(own.ndim), key=own.stride, reverse=True)  # in which draws fill memory
        shape = each * sum(counts), *own.shape[1:]
        whole = torch.empty_permuted(shape, order, dtype=own.dtype, device=own.device)
        return whole, slice(start, start + len(own))
