"""The steps from a dense model to one with experts and trained routers."""

from dataclasses import dataclass
from typing import Any

import d2dmoe
from d2dmoe.cli.output import say
from d2dmoe.cli.tasks import Source, training

History = dict[str, list[dict[str, float]]]  # rows of each training, by its name


@dataclass(frozen=True)
class Recipe:
    """What is trained for how long, and into which experts the blocks are split."""

    expert_size: int | None
    attention: tuple[str, ...]  # roles of projections that become experts too
    attention_steps: int
    sparsify_steps: int
    alpha: float
    learning_rate: float  # of the steps that sparsify
    router_steps: int
    router_learning_rate: float
    router_width: int
    seed: int

    def carry_out(self, source: Source) -> History:
        """Convert a source's model, in place."""
        model = source.opened.model
        say("reading the data")
        inputs = [encoded for _rows, encoded in source.encoded("train")]  # routers need no targets
        task = training(source) if self.sparsify_steps else None  # of the model as it still is
        history: History = {}
        if self.attention:
            history["attention"] = self._imitate(model, inputs)
        if task is not None:
            history["sparsify"] = self._sparsify(model, task)
        say("splitting into experts")
        d2dmoe.convert(model, self.expert_size, attention=self.attention, seed=self.seed)
        history["routers"] = self._train_routers(model, inputs)
        return history

    def _imitate(self, model: Any, inputs: list[Any]) -> list[dict[str, float]]:
        roles, steps = self.attention, self.attention_steps
        say(f"imitating the projections {', '.join(roles)}, {steps} steps")
        return d2dmoe.imitate_projections(model, inputs, steps=steps, maps=roles, seed=self.seed)

    def _sparsify(self, model: Any, task: Any) -> list[dict[str, float]]:
        say(f"sparsifying, {self.sparsify_steps} steps")
        return d2dmoe.sparsify(
            model,
            task.batches,
            steps=self.sparsify_steps,
            lr=self.learning_rate,
            alpha=self.alpha,
            loss=task.loss,
            seed=self.seed,
        )

    def _train_routers(self, model: Any, inputs: list[Any]) -> list[dict[str, float]]:
        say(f"training routers, {self.router_steps} steps")
        return d2dmoe.train_routers(
            model,
            inputs,
            steps=self.router_steps,
            lr=self.router_learning_rate,
            width=self.router_width,
            seed=self.seed,
        )
