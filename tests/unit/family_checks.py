"""What a converted model of every family must do: the columns of the table that
`test_families.py` tests and `tools/families.py` prints.

A column is a function (subject) → what the table says; it raises AssertionError where the model
fails. Errors are the largest difference, relative to the largest number that is expected.
As a program, `family_checks.py FOLDER` loads what `save_all` wrote, in a process of its own.
"""

import copy
import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from families import FAMILIES, FEWER, Family, Inputs
from torch import Tensor, nn

from d2dmoe.api.pretrained import from_pretrained, save_pretrained
from d2dmoe.conversion import add_routers
from d2dmoe.moe import MoE, set_selection, watch_selections
from d2dmoe.surgery import find, watch

TOLERANCE = 1e-5  # float32, another order of summation
NEW_TOKENS = 5
BF16 = 2**-8  # a rounding's error


class Subject:
    """A family's model, and what it was converted to; each is made once for all columns."""

    def __init__(self, family: Family):
        self.family, self.inputs = family, family.example()

    @cached_property
    def dense(self) -> nn.Module:
        return self.family.build()

    @cached_property
    def expected(self) -> Tensor:
        return answer(self.dense, self.inputs)

    @cached_property
    def converted(self) -> nn.Module:
        """Every expert runs."""
        return self.family.convert(copy.deepcopy(self.dense))

    @cached_property
    def routed(self) -> nn.Module:
        """Random routers, at the τ at which half of the experts run."""
        torch.manual_seed(2)
        model = add_routers(copy.deepcopy(self.converted), "regression", width=8)
        set_selection(model, "dynamic_k", middle_tau(model, self.inputs))
        return model


def answer(model: Callable[..., Any], inputs: Inputs) -> Tensor:
    """The logits of a model, or its last hidden states."""
    with torch.no_grad():
        out = model(**inputs)
    return out if isinstance(out, Tensor) else out[0]


def error(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return ((found - expected).abs().max() / expected.abs().max()).item()


def middle_tau(model: nn.Module, inputs: Inputs) -> float:
    """The median of the scores, each relative to its token's largest; it is itself no score."""
    selections = {name: moe.selection for name, moe in find(model, MoE).items()}
    with watch(selections, lambda _, scores, mask: scores / scores.amax(-1, True)) as shares:
        answer(model, inputs)
    ranked = torch.cat([share.flatten() for share in shares.values()]).sort().values
    half = len(ranked) // 2
    return ranked[half - 1 : half + 1].mean().item()


def found(subject: Subject) -> str:
    layers = list(find(subject.converted, MoE).values())
    assert len(layers) == subject.family.layers, f"{len(layers)} of {subject.family.layers} FFNs"
    forms = {f"{'gated ' * (m.gate is not None)}{m.activation_name}" for m in layers}
    return f"{len(layers)}, {' and '.join(sorted(forms))}"


def all_experts_on(subject: Subject) -> str:
    off = error(answer(subject.converted, subject.inputs), subject.expected)
    assert off <= TOLERANCE, f"off by {off:.1e}"
    return f"{off:.0e}"


def every_backend(subject: Subject) -> str:
    """The routed model with gradients, which masks, and without, by each backend."""
    model = copy.deepcopy(subject.routed)
    with watch_selections(model) as masks:
        masked = model(**subject.inputs)
    masked = (masked if isinstance(masked, Tensor) else masked[0]).detach()
    share = torch.cat([mask.flatten() for mask in masks.values()]).float().mean().item()
    assert 0.2 < share < 0.8, f"{share:.0%} of the experts run"
    assert error(masked, subject.expected) > 100 * TOLERANCE, "routing changes nothing"
    largest = 0.0
    for backend in ("dense", "dynamic_k", "auto"):
        for moe in find(model, MoE).values():
            moe.backend.name = backend
        off = error(answer(model, subject.inputs), masked)
        assert off <= TOLERANCE, f"{backend} is off by {off:.1e}"
        largest = max(largest, off)
    return f"{largest:.0e} ({share:.0%} run)"


def generated(model: Any, inputs: Inputs, use_cache: bool) -> tuple[Tensor, Tensor]:
    """New tokens [batch, tokens], and the logits of each [batch, tokens, vocabulary]."""
    out = model.generate(
        **inputs,
        max_new_tokens=NEW_TOKENS,
        min_new_tokens=NEW_TOKENS,
        do_sample=False,
        use_cache=use_cache,
        return_dict_in_generate=True,
        output_logits=True,
    )
    return out.sequences[:, -NEW_TOKENS:], torch.stack(out.logits, dim=1)


def same_texts(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> bool:
    return torch.equal(found[0], expected[0]) and error(found[1], expected[1]) < 10 * TOLERANCE


def prompts(subject: Subject) -> tuple[Inputs, list[Inputs]]:
    """Two prompts as a batch, and each of them alone. Decoders need padding on the left."""
    batch = {k: v for k, v in subject.inputs.items() if k != "decoder_input_ids"}
    mask = batch.get("attention_mask")
    if mask is None:
        return batch, [{k: v[i : i + 1] for k, v in batch.items()} for i in (0, 1)]
    alone = [{k: v[i : i + 1, : mask[i].sum()] for k, v in batch.items()} for i in (0, 1)]
    if "decoder_input_ids" not in subject.inputs:
        batch = {k: torch.stack([v[0], v[1].roll(FEWER)]) for k, v in batch.items()}
    return batch, alone


def cached_generation(subject: Subject) -> str:
    if not subject.family.generates:
        return "–"

    def equal(model: nn.Module) -> bool:
        batch, _ = prompts(subject)
        return same_texts(generated(model, batch, True), generated(model, batch, False))

    return as_the_original(subject, equal)


def padded_batch(subject: Subject) -> str:
    """Texts of two lengths in one batch: the shorter one as if it were alone."""
    if "attention_mask" not in subject.inputs:
        return "–"
    batch, alone = prompts(subject)

    def equal_texts(model: nn.Module) -> bool:
        together = generated(model, batch, True)
        return all(
            same_texts(generated(model, one, True), tuple(x[i : i + 1] for x in together))
            for i, one in enumerate(alone)
        )

    def equal_answers(model: nn.Module) -> bool:
        together, one = answer(model, subject.inputs)[1:], answer(model, alone[1])
        real = together[:, : one.shape[1]] if one.ndim == 3 else together
        return error(real, one) < 10 * TOLERANCE

    return as_the_original(subject, equal_texts if subject.family.generates else equal_answers)


def as_the_original(subject: Subject, holds: Callable[[nn.Module], bool]) -> str:
    """Whether something holds for the routed model; it must where it holds for the dense one."""
    if holds(subject.routed):
        return "yes"
    assert not holds(subject.dense), "the original does"
    return "no, as the original"


def in_bf16(subject: Subject) -> str:
    """A model that is in bf16 when it is converted."""
    inputs = {
        name: x.bfloat16() if x.is_floating_point() else x for name, x in subject.inputs.items()
    }
    dense = copy.deepcopy(subject.dense).bfloat16()
    size = error(answer(dense, inputs).float(), subject.expected)
    model = subject.family.convert(dense)
    assert len(find(model, MoE)) == subject.family.layers
    off = error(answer(model, inputs).float(), subject.expected)
    assert off <= 2 * max(size, BF16), f"off by {off:.1e}, the original by {size:.1e}"
    return f"{off:.0e} (original {size:.0e})"


def compiled(subject: Subject) -> str:
    """In one graph, if the dense model is compiled to one."""

    def run(model: nn.Module, fullgraph: bool) -> Tensor:
        torch._dynamo.reset()
        return answer(torch.compile(model, backend="eager", fullgraph=fullgraph), subject.inputs)

    return traced(subject, lambda model: run(model, True), lambda model: run(model, False))


def exported(subject: Subject) -> str:
    def run(model: nn.Module) -> Tensor:
        return answer(torch.export.export(model, (), subject.inputs).module(), subject.inputs)

    return traced(subject, run)


def traced(
    subject: Subject,
    run: Callable[[nn.Module], Tensor],
    otherwise: Callable[[nn.Module], Tensor] | None = None,
) -> str:
    """The answer of the routed model by `run`, which may fail only where the dense one fails too;
    then by `otherwise`, if there is another way."""
    expected = answer(subject.routed, subject.inputs)
    try:
        off, said = error(run(subject.routed), expected), "yes"
    except Exception as failure:
        said = f"no, as the original ({type(failure).__name__})"
        try:
            run(subject.dense)
        except Exception:
            if otherwise is None:
                return said
            off, said = error(otherwise(subject.routed), expected), "in parts, as the original"
        else:
            raise AssertionError(f"the original does; {failure}") from None
    assert off <= TOLERANCE, f"off by {off:.1e}"
    return said


TRACES: dict[str, Callable[[Subject], str]] = {
    "`torch.compile`": compiled,
    "`torch.export`": exported,
}
COLUMNS = {
    "FFNs found": found,
    "all experts on": all_experts_on,
    "routed: every backend": every_backend,
    "cached generation": cached_generation,
    "padded batch": padded_batch,
    "bf16": in_bf16,
    **TRACES,
}


def save_all(subjects: Iterable[Subject], folder: Path) -> None:
    """Save every routed model as a user does, with a batch and the model's answer."""
    for subject in subjects:
        place = folder / subject.family.name.replace("/", "-")
        save = getattr(subject.routed, "save_pretrained", None)
        if save is None:
            save_pretrained(subject.routed, place)
        else:
            save(place)
        expected = answer(subject.routed, subject.inputs)
        torch.save((subject.family.name, subject.inputs, expected), place / "answer.pt")


def reload_all(folder: Path) -> dict[str, str]:
    """Load all models of a folder in a new process; what the table says of each."""
    call = [sys.executable, __file__, str(folder)]
    done = subprocess.run(call, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def loaded(family: Family, folder: Path) -> nn.Module:
    """As a user loads it: a class of transformers knows the way after `import d2dmoe`."""
    if family.library == "transformers":
        import transformers

        return getattr(transformers, family.make.args[0]).from_pretrained(folder)
    return from_pretrained(folder, model=family.make())


def reloaded(folder: Path) -> str:
    name, inputs, expected = torch.load(folder / "answer.pt", weights_only=True)
    off = error(answer(loaded(FAMILIES[name], folder).eval(), inputs), expected)
    return f"{off:.1f}" if off == 0 else f"off by {off:.1e}"


def main(folder: Path) -> None:
    """Print, as JSON, what became of each saved model."""
    said = {}
    for path in sorted(folder.glob("*/answer.pt")):
        name = torch.load(path, weights_only=True)[0]
        try:
            said[name] = reloaded(path.parent)
        except Exception as failure:
            said[name] = f"{type(failure).__name__}: {failure}"
    print(json.dumps(said))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
