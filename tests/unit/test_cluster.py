"""Laws of what jobs ask of a cluster: more for more work, within what partitions grant, a GPU only
where there is one."""

from pathlib import Path

import pytest
import yaml

from d2dmoe.config.resources import ResourcesConfig
from d2dmoe.methods import EVALUATIONS
from d2dmoe.plan.cluster import (
    LONGEST_MIN,
    PROGRAM_MB,
    converting_needs,
    gpu_request,
    machines,
    measuring_needs,
    several,
    size_of,
    training_needs,
)
from d2dmoe.plan.lineage import Step
from d2dmoe.plan.plan import Plan, load_plan

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def paper() -> Plan:
    return load_plan(yaml.safe_load((ROOT / "configs/paper.yaml").read_text()), ROOT)


def stage(plan: Plan, task: str, name: str, variant: str = "d2dmoe") -> Step:
    suite = "main" if variant in plan.task(task).variants else "compatibility"
    return plan.line(suite, task, variant).step_of(name)


def changed(step: Step, **options) -> Step:
    values = vars(step) | {"cfg": step.cfg.model_copy(update=options)}
    return Step(**values)


def needs_of(plan: Plan, step: Step, samples: int = 1000, gpu: bool = True, data_mb: float = 0):
    return training_needs(step, plan.task(step.task).data, samples, data_mb, gpu)


@pytest.mark.parametrize(
    ("task", "millions"), [("imagenet", 86), ("bert", 110), ("gpt2", 124), ("gemma", 2506)]
)
def test_a_published_model_is_no_larger_than_its_bound_and_not_far_below(paper, task, millions):
    size = size_of(stage(paper, task, "dense"), paper.task(task).data)
    assert millions <= size.parameters / 1e6 <= 5 * millions  # BERT's vocabulary is 30,522


def test_a_distilled_model_has_the_size_of_the_student(paper):
    data = paper.task("imagenet").data
    student = size_of(stage(paper, "imagenet", "sparsify", "d2dmoe_vit_s"), data)
    assert student.parameters < size_of(stage(paper, "imagenet", "sparsify"), data).parameters / 3


@pytest.mark.parametrize(
    ("more", "grows"),
    [
        ({"epochs": 20.0}, {"runtime"}),
        ({"batch_size": 128}, {"mem_mb"}),  # with as many samples, as many FLOPs
        ({"accumulate": 2}, set()),
    ],
)
def test_longer_trainings_ask_for_time_and_larger_batches_for_memory(paper, more, grows):
    step = changed(stage(paper, "bert", "sparsify"), epochs=1.0)
    one, two = (
        needs_of(paper, step, 1280, gpu=False),
        needs_of(paper, changed(step, **more), 1280, False),
    )
    assert {
        name for name in ("mem_mb", "runtime") if getattr(two, name) > getattr(one, name)
    } == grows


def test_a_state_of_gigabytes_fits_beside_the_training(paper):
    step = stage(paper, "gemma", "sparsify")
    parameters = size_of(step, paper.task("gemma").data).parameters
    assert needs_of(paper, step).mem_mb > PROGRAM_MB + parameters * 16 / 2**20


def test_the_data_count(paper):
    step = stage(paper, "bert", "sparsify")
    assert needs_of(paper, step, data_mb=5000).mem_mb >= needs_of(paper, step).mem_mb + 5000


def test_a_cpu_takes_longer_and_more_threads_less(paper):
    step = changed(stage(paper, "bert", "sparsify"), epochs=1.0)
    on_gpu, on_cpu = needs_of(paper, step), needs_of(paper, step, gpu=False)
    threads = needs_of(paper, changed(step, threads=4), gpu=False)
    assert on_gpu.runtime < threads.runtime < on_cpu.runtime < LONGEST_MIN
    assert on_gpu.mem_mb < on_cpu.mem_mb  # activations are the GPU's own memory


def test_no_job_asks_for_more_than_partitions_grant(paper):
    needs = needs_of(paper, stage(paper, "imagenet", "sparsify"), 1_271_167)
    assert needs.runtime == LONGEST_MIN == needs.times(3).runtime


def test_a_later_attempt_asks_for_more(paper):
    first = needs_of(paper, changed(stage(paper, "bert", "sparsify"), epochs=1.0))
    second = first.times(2)
    assert (second.mem_mb, second.runtime) == (2 * first.mem_mb, 2 * first.runtime)
    assert first.times(1) == first


def test_measuring_more_points_takes_longer(paper):
    step, data = stage(paper, "bert", "router"), paper.task("bert").data
    one, many = (measuring_needs(step, data, 2000, 0, False, points, 250) for points in (1, 8))
    assert one.runtime < many.runtime and one.mem_mb == many.mem_mb


def test_a_clustering_of_the_largest_model_gets_its_time(paper):
    """Gemma's takes minutes on a core, see tools/time_clustering.py."""
    needs = converting_needs(stage(paper, "gemma", "clustering"), paper.task("gemma").data)
    assert 60 < needs.runtime < LONGEST_MIN and needs.mem_mb > 20_000


def test_every_evaluation_goes_together_with_others():
    profile = yaml.safe_load((ROOT / "profiles/slurm/profile.yaml").read_text())
    groups = dict(line.split("=") for line in profile["groups"])
    together = {rule for rule, group in groups.items() if group == "measure"}
    assert together == {*EVALUATIONS, "activity", "load_maps", "token_load"}


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A function that makes `sinfo` list what nodes have."""

    def lists(*features: str) -> None:
        program = tmp_path / "sinfo"
        program.write_text("#!/bin/sh\n" + "".join(f"echo '{line}'\n" for line in features))
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=":")

    return lists


GPUS = ["gpu:2", "gpu:a100:4(S:0-1)", "craynetwork:4,gpu:h100:1", "gpu:1g.10gb:7"]


@pytest.mark.parametrize("features", GPUS)
def test_a_gpu_is_asked_for_as_the_profile_says(cluster, features):
    cluster("(null)", features)
    assert gpu_request("gres=gpu:1") == {"gres": "gpu:1"}
    assert gpu_request("gres=gpu:a100:1") == {"gres": "gpu:a100:1"}
    assert gpu_request("gpu=1") == {"gpu": 1}
    assert gpu_request("") == {}


@pytest.mark.parametrize("features", ["(null)", "gpu:0", "shard:8"])
def test_none_is_asked_of_a_cluster_without_any(cluster, features):
    cluster(features)
    assert gpu_request("gres=gpu:1") == {}


def test_where_the_cluster_cannot_be_asked_the_profile_is_believed(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu_request("gres=gpu:1") == {"gres": "gpu:1"}


def test_several_processes_ask_for_a_gpu_each_and_machines_where_it_takes_several(cluster):
    cluster("gpu:h100:8")
    alone, eight = ResourcesConfig(), ResourcesConfig(gpu=8, nodes=2)
    assert several(alone, "gres=gpu:1") == {"device": 1, "processes": 1, "gres": "gpu:1"}
    asked = {"gres=gpu:1": "gpu:8", "gres=gpu:a100:1": "gpu:a100:8", "gpu=1": 8}
    for wanted, found in asked.items():
        key = wanted.partition("=")[0]
        assert several(eight, wanted) == {"device": 8, "processes": 8, key: found}
    assert machines(alone, gpu=True) == {}
    assert machines(eight, gpu=True) == {"nodes": 2}
    assert machines(eight, gpu=False) == {"nodes": 2, "tasks": 2}


def test_several_processes_need_as_much_memory_as_they_are(paper):
    needs = needs_of(paper, stage(paper, "gemma", "sparsify"))
    assert needs.together(4).mem_mb == 4 * needs.mem_mb
    assert needs.together(4).runtime == needs.runtime
