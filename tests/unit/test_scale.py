"""Laws of docs/scale.md: it says what the configuration and the rates come to, and its sizes are
those of the models that are meant."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import scale  # noqa: E402
import yaml  # noqa: E402

from d2dmoe.figures.saved_share import ORIGINALS  # noqa: E402
from d2dmoe.plan.plan import load_plan  # noqa: E402

MODELS = {"imagenet": "ViT-B/16", "bert": "BERT-base", "gpt2": "GPT2-base", "gemma": "Gemma-2B"}
MILLIONS = {"imagenet": 86, "bert": 109, "gpt2": 124, "gemma": 2506}


@pytest.fixture(scope="module")
def works() -> dict[str, scale.Work]:
    plan = load_plan(yaml.safe_load((ROOT / "configs/paper.yaml").read_text()), ROOT)
    return {task: scale.Work(plan, task) for task in plan.config.tasks}


def test_the_page_is_what_the_tool_makes_of_the_configuration():
    """If not: python tools/scale.py"""
    page = (ROOT / "docs/scale.md").read_text()
    assert page == scale.with_tables(page) and page.count("| imagenet |") == 3


def test_every_experiment_is_of_the_size_that_the_figures_give_it(works):
    assert works.keys() == MODELS.keys()
    for task, work in works.items():
        assert work.model == ORIGINALS[MODELS[task]], task
        assert work.parameters / 1e6 == pytest.approx(MILLIONS[task], rel=0.02), task


def test_a_training_sees_what_the_configuration_says(works):
    imagenet, gpt2 = works["imagenet"], works["gpt2"]
    (sparsify, *_) = [s for s in imagenet.trainings if s.stage.name == "sparsify"]
    passes = imagenet.seen(sparsify) / imagenet.samples
    assert imagenet.samples == 1_271_167 and passes == pytest.approx(90, rel=1e-3)
    (sparsify, *_) = [s for s in gpt2.trainings if s.stage.name == "sparsify"]
    assert gpt2.seen(sparsify) * 1024 == pytest.approx(1e9, rel=1e-3)
    assert imagenet.flops(sparsify) > 0


def test_more_gpus_take_less_time_and_hold_fewer_samples_each(works):
    for work in works.values():
        step = max(work.trainings, key=work.flops)
        one, eight = (work.hours(1e18, gpus) for gpus in (1, 8))
        assert one / 8 < eight < one
        assert work.memory_gb(step, 8) <= work.memory_gb(step, 1)
        assert work.memory_gb(step, 8) > work.parameters * 16 / 1e9


def test_too_few_readers_are_what_one_waits_for(works, monkeypatch):
    imagenet = works["imagenet"]
    monkeypatch.setattr(scale, "READERS", 10**6)
    fast = imagenet.hours(1e18, 1)
    monkeypatch.setattr(scale, "READERS", 1)
    assert imagenet.hours(1e18, 1) == pytest.approx(fast * imagenet.eaten / scale.IMAGES_A_CORE)
    assert works["gpt2"].fed == 1
