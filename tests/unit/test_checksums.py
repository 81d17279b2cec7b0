"""Laws of checksums: whatever bit of a result flips, the job that reads it says so before use."""

import errno
import json
import os
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from d2dmoe.errors import ResultError, UserError
from d2dmoe.io.checksums import check, check_all, checksum_file, read_checksums
from d2dmoe.io.files import sha256
from d2dmoe.jobs.attempts import save_attempts
from d2dmoe.jobs.job import job
from d2dmoe.jobs.record import identity_of
from d2dmoe.jobs.verify import report, verify

TABLE = "results/tables/a.csv"
MODEL = "results/models/b/model.safetensors"
REMEDY = "Delete it and run the same command again"


class Files(list):
    """Snakemake's lists of files: those with names are attributes too."""

    def __init__(self, *unnamed: str, **named: str):
        super().__init__([*unnamed, *named.values()])
        self.named = named

    def __getattr__(self, name: str) -> str:
        return self.named[name]

    def get(self, name: str) -> str | None:
        return self.named.get(name)


def given(inputs: Files, outputs: Files, **params: Any) -> SimpleNamespace:
    """What the workflow gives to a script."""
    return SimpleNamespace(
        rule="some_rule",
        log=["job.log"],
        config={},
        input=inputs,
        output=outputs,
        params=params | {"code": "abc"},
        wildcards={"seed": "0"},
    )


def make(path: str, content: str, *sources: str, record: str | None = None) -> None:
    """A job that writes a file."""
    outputs = Files(path, **({"record": record} if record else {}))
    with job(given(Files(*sources), outputs)):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(content)


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def made() -> None:
    """A model, and a table that was made of it and of a file of the project."""
    Path("resources").mkdir()
    Path("resources/c.parquet").write_text("images")
    make(MODEL, "weights")
    make(TABLE, "x,y\n1,2\n", MODEL, "resources/c.parquet")


def flip(path: Path, rng: random.Random) -> bytes:
    """Flip a random bit; returns what the file held."""
    whole = path.read_bytes()
    changed = bytearray(whole)
    changed[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
    path.write_bytes(changed)
    return whole


def test_a_job_leaves_checksums_of_its_results_and_of_what_they_were_made_of(made):
    sums = read_checksums(Path(TABLE))
    assert list(sums) == [TABLE, MODEL, "resources/c.parquet"]
    assert all(digest == sha256(Path(name)) for name, digest in sums.items())
    assert check(Path(TABLE)) == sums[TABLE]
    assert Path(TABLE).read_text() == "x,y\n1,2\n"


@pytest.mark.parametrize("name", [TABLE, MODEL])
def test_every_flip_ends_the_job_that_reads_it_with_file_and_remedy(made, name):
    rng = random.Random(0)
    for _ in range(50):
        whole = flip(Path(name), rng)
        with pytest.raises(SystemExit), job(given(Files(name), Files())):
            pytest.fail("the job has begun")
        told = Path("job.log").read_text()
        assert f"{name} is damaged" in told and REMEDY in told
        Path(name).write_bytes(whole)
    check_all([name])


def test_of_a_flip_in_a_checksum_the_result_is_named_or_nothing_changes(made):
    rng, expected, named = random.Random(0), check(Path(TABLE)), 0
    for _ in range(200):
        whole = flip(checksum_file(Path(TABLE)), rng)
        try:
            assert check(Path(TABLE)) == expected
        except ResultError as error:
            assert TABLE in str(error) and REMEDY in str(error)
            named += 1
        checksum_file(Path(TABLE)).write_bytes(whole)
    assert named > 50  # those in its own line


def test_an_edited_table_is_named(made):
    Path(TABLE).write_text("x,y\n1,3\n")
    with pytest.raises(ResultError, match=f"{TABLE} is damaged.*someone edited it. {REMEDY}"):
        check_all([TABLE])


def test_a_result_that_cannot_be_read_is_named(made, monkeypatch):
    def fail(_path: Path) -> str:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("d2dmoe.io.checksums.sha256", fail)
    with pytest.raises(ResultError, match=f"{TABLE} is damaged: it cannot be read.*{REMEDY}"):
        check_all([TABLE])


def test_what_no_job_made_or_made_elsewhere_is_foreign(made):
    other = Path("results/tables/other.csv")
    other.write_bytes(Path(TABLE).read_bytes())
    with pytest.raises(ResultError, match="other.csv is foreign: no job wrote its checksum"):
        check(other)
    checksum_file(other).write_bytes(checksum_file(Path(TABLE)).read_bytes())
    with pytest.raises(ResultError, match=f"other.csv is foreign: it was made as {TABLE}"):
        check(other)


def test_files_that_are_no_results_need_no_checksum(made, tmp_path):
    name = str(tmp_path.parent / "elsewhere.csv")
    Path(name).write_text("x")
    assert check_all(["resources/c.parquet", name]) == {
        "resources/c.parquet": sha256(Path("resources/c.parquet")),
        name: sha256(Path(name)),
    }


def test_published_results_need_no_checksum(made):
    for name in ("reference/x/tables/a.csv", "published/tables/a.csv", "figures/reference/x/a.png"):
        path = Path("results") / name
        path.parent.mkdir(parents=True)
        path.write_text("a\n1\n")
    reference = Path("results/reference/x/tables/a.csv")
    assert check_all([str(reference)]) == {str(reference): sha256(reference)}
    assert verify(Path("results"))[1] == []


def test_absolute_paths_inside_of_the_working_directory_are_the_same_files(made, tmp_path):
    assert check_all([str(tmp_path / TABLE)]) == check_all([TABLE])


def test_results_may_be_moved_as_a_whole(made, tmp_path, monkeypatch):
    (tmp_path / "moved").mkdir()
    for name in ("results", "resources"):
        Path(name).rename(f"moved/{name}")
    monkeypatch.chdir("moved")
    assert verify(Path("results")) == (2, [])


def test_a_job_that_fails_leaves_no_new_checksum(made):
    before = checksum_file(Path(TABLE)).read_bytes()
    with pytest.raises(SystemExit), job(given(Files(MODEL), Files(TABLE))):
        Path(TABLE).write_text("half")
        raise UserError("the disk is full")
    assert checksum_file(Path(TABLE)).read_bytes() == before


@pytest.mark.parametrize(
    ("ask", "owner"),
    [
        (lambda: torch.empty(1 << 50, dtype=torch.uint8), "the machine's"),
        (lambda: bytearray(1 << 50), "the machine's"),
        (lambda: fail(torch.OutOfMemoryError("CUDA out of memory. Tried 1 GiB")), "the GPU's"),
        (lambda: fail(RuntimeError("CUDA error: out of memory")), "the GPU's"),
        (lambda: fail(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED")), "the GPU's"),
        (lambda: fail(RuntimeError("Triton Error [CUDA]: out of memory")), "the GPU's"),
    ],
)
def test_a_job_without_memory_says_so_and_what_helps(made, ask, owner):
    with pytest.raises(SystemExit), job(given(Files(MODEL), Files(TABLE))):
        ask()
    told = Path("job.log").read_text()
    assert f"error: {owner} memory is full. Lower the batch_size" in told
    assert "Traceback" not in told


def fail(error: Exception) -> None:
    raise error


def test_of_other_errors_a_job_tells_where_they_come_from(made):
    with pytest.raises(SystemExit), job(given(Files(MODEL), Files(TABLE))):
        fail(RuntimeError("some operator cannot do this"))
    told = Path("job.log").read_text()
    assert "a fault of this program" in told and "Traceback" in told


def test_an_identity_follows_options_code_place_and_the_contents_of_inputs():
    options, inputs = {"cfg": {"lr": 0.1}, "code": "abc", "log": "a"}, {"a": "12", "b": "34"}
    name = identity_of(options, inputs)
    assert name == identity_of(dict(reversed(options.items())), dict(reversed(inputs.items())))
    assert name == identity_of(options, {"c": "12", "d": "34"})
    others = [
        identity_of(options, {"a": "12", "b": "35"}),
        identity_of(options, {"a": "34", "b": "12"}),
        identity_of(options, {"a": "12"}),
        identity_of(options | {"cfg": {"lr": 0.2}}, inputs),
        identity_of(options | {"code": "abd"}, inputs),
        identity_of(options | {"log": "b"}, inputs),
    ]
    assert len({name, *others}) == 7


def test_the_record_of_a_job_tells_of_all_attempts(made):
    record = "results/benchmarks/jobs/x.json"
    with pytest.raises(SystemExit), job(given(Files(MODEL), Files(TABLE, record=record))):
        raise UserError("stopped by SIGTERM")
    (notes,) = Path("results/.state").glob("*.json")
    save_attempts(notes, [{"host": "here", "began": "then", "s": 100.0}])  # as if it took long
    make(TABLE, "x,y\n1,2\n", MODEL, record=record)
    told = json.loads(Path(record).read_text())
    assert [attempt["s"] >= 100 for attempt in told["attempts"]] == [True, False]
    assert 100.0 <= told["s"] < 110 and told["rule"] == "some_rule" and told["code"] == "abc"
    assert told["versions"]["torch"] and told["hardware"]["cpus"] >= 1
    assert not list(Path("results/.state").iterdir())
    assert read_checksums(Path(record))[record] == sha256(Path(record))


# All results at once.


def test_whole_results_are_told_to_be_whole(made):
    assert report(Path("results")) == "all 2 files in results/ are as their jobs left them"


def test_damaged_foreign_and_stale_files_are_told_apart(made):
    rng = random.Random(0)
    make("results/tables/b.csv", "x", TABLE)
    make("results/tables/c.csv", "x", MODEL)
    make(MODEL, "other weights")  # so a.csv and c.csv are stale
    flip(Path("results/tables/c.csv"), rng)  # and one of them damaged
    Path("results/tables/d.csv").write_text("mine")
    Path("results/logs").mkdir()
    Path("results/logs/a.log").write_text("no result")
    save_attempts(Path("results/.state/a.json"), [])
    flip(Path("results/.state/a.json"), rng)
    Path("results/.state/a.safetensors").write_bytes(b"half a state")
    with pytest.raises(UserError) as caught:
        report(Path("results"))
    summary, *faults = str(caught.value).splitlines()
    assert summary == "5 of 7 files in results/ cannot be relied on:"
    found = {" ".join(fault.split()[:3]) for fault in faults}
    assert found == {
        "results/tables/c.csv is damaged:",
        "results/tables/d.csv is foreign:",
        f"{TABLE} is stale:",
        "results/.state/a.json is damaged.",
        "results/.state/a.safetensors is damaged:",
    }
    assert all("Delete it" in fault for fault in faults)


def test_a_file_whose_source_is_gone_is_not_stale(made):
    Path(MODEL).unlink()
    assert verify(Path("results")) == (1, [])
    Path("resources/c.parquet").write_text("other images")
    (fault,) = verify(Path("results"))[1]
    assert f"{TABLE} is stale: resources/c.parquet has changed" in fault
