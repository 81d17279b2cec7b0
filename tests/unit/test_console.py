"""What a person sees of a run, from the records that Snakemake logs."""

import io
import logging
from types import SimpleNamespace

import pytest
from snakemake_interface_logger_plugins.common import LogEvent

from d2dmoe.jobs.console import Console
from d2dmoe.jobs.names import name_of, variants_by_folder

FOLDER = "results/models/vision/seed-0/router-1a2b"
WILDCARDS = {"task": "vision", "seed": "0", "folder": "router-1a2b"}


def console(monkeypatch, dryrun: bool = False) -> Console:
    settings = SimpleNamespace(stdout=False, quiet=None, dryrun=dryrun)
    found = Console(settings, None)
    found.stream = io.StringIO()
    monkeypatch.setattr(Console, "variants", {FOLDER: "d2dmoe, top_k"})
    return found


def say(console: Console, message: str = "", level: int = logging.INFO, **about) -> str:
    """What the console writes for a record."""
    record = logging.makeLogRecord({"msg": message, "levelno": level, **about})
    before = len(console.stream.getvalue())
    console.emit(record)
    return console.stream.getvalue()[before:]


def started(jobid: int = 7, **about) -> dict:
    usual = {
        "event": LogEvent.JOB_INFO,
        "jobid": jobid,
        "rule_name": "router",
        "wildcards": WILDCARDS,
        "log": ["job.log"],
        "output": [f"{FOLDER}/model.safetensors"],
        "reason": "Missing output files: a; Input files updated by another job: b",
    }
    return usual | about


def test_a_job_is_named_when_it_starts_and_when_it_ends(monkeypatch):
    own = console(monkeypatch)
    text = say(own, event=LogEvent.RUN_INFO, stats={"router": 1, "dense": 2, "total": 3})
    assert text == "3 jobs: 1 router, 2 dense\n"
    name = "router  vision · seed 0 · d2dmoe, top_k"
    assert say(own, **started()).endswith(f"start   {name}\n")
    ended = say(own, event=LogEvent.JOB_FINISHED, job_id=7)
    assert f"done    {name} (0 s, 1 of 3)\n" in ended
    summary = say(own, "Elapsed time: 1 day, 2:03:04.6")
    assert summary.startswith("1 of 3 jobs done in 1 day, 2:03:05\n")
    assert "1  files in results/models" in summary and "failed" not in summary


def test_a_target_that_makes_nothing_is_passed_over(monkeypatch):
    own = console(monkeypatch)
    assert say(own, **started(log=[])) == ""
    assert say(own, event=LogEvent.JOB_FINISHED, job_id=7) == ""


@pytest.mark.parametrize(
    ("log", "shown"),
    [
        ("12:00 begins\n12:01 error: alpha is wrong.\n  Lower it.\n", "error: alpha is wrong."),
        ("12:00 begins\n", "12:00 begins"),
        ("", "the job's process died with <Signals.SIGKILL: 9>."),
    ],
)
def test_a_failure_shows_its_cause_and_its_log(monkeypatch, tmp_path, log, shown):
    own, path = console(monkeypatch), tmp_path / "job.log"
    path.write_text(log)
    say(own, **started(log=[str(path)]))
    raised = "RuleException:\nCalledProcessError in file 'x', line 1:\nCommand '…' died with "
    raised += "<Signals.SIGKILL: 9>."
    assert say(own, raised, logging.ERROR, event=LogEvent.ERROR) == ""
    about = {"jobid": 7, "rule_name": "router", "log": [str(path)]}
    text = say(own, "", logging.ERROR, event=LogEvent.JOB_ERROR, **about)
    assert "FAILED  router  vision · seed 0 · d2dmoe, top_k\n" in text
    assert f"    {shown}\n" in text and f"    log: {path}\n" in text
    assert "begins" not in text or shown == "12:00 begins"
    assert "1 failed:\n    router  vision" in say(own, "Elapsed time: 0:00:01.0")
    say(own, event=LogEvent.JOB_FINISHED, job_id=7)  # repeated
    assert "failed" not in say(own, "Elapsed time: 0:00:01.0")


def test_what_is_interrupted_has_not_failed(monkeypatch, tmp_path):
    own = console(monkeypatch)
    say(own, **started())
    assert "stopping" in say(own, "Terminating processes on user request, this might take some")
    about = {"jobid": 7, "rule_name": "router", "log": []}
    text = say(own, "", logging.ERROR, event=LogEvent.JOB_ERROR, **about)
    assert "stopped router" in text and "FAILED" not in text
    assert "goes on from here" in say(own, "Elapsed time: 0:00:01.0")


def test_a_dry_run_lists_jobs_by_rule_and_reason(monkeypatch):
    own = console(monkeypatch, dryrun=True)
    for jobid in range(5):
        wildcards = WILDCARDS | {"seed": str(jobid)}
        assert say(own, **started(jobid, wildcards=wildcards)) == ""
    other = {"rule_name": "claims", "wildcards": {"suite": "ablations/"}}
    say(own, **started(9, reason="Params have changed since last execution: …", **other))
    say(own, **started(10, log=[], rule_name="all"))
    first, second, total = say(own, "This was a dry-run (flag -n).").splitlines()
    assert first.split(None, 2)[:2] == ["5", "router"] and "not made yet" in first
    assert first.endswith("; 2 more") and "made anew" not in first
    assert "options or code changed" in second and second.endswith("ablations")
    assert total == "    6  jobs would run"


def test_faults_are_shown_without_the_places_in_snakefiles(monkeypatch):
    own = console(monkeypatch)
    fault = 'ConfigError in file "/x y/rules/common.smk", line 25:\nseeds = [] is empty\n'
    fault += '  File "/x y/rules/common.smk", line 25, in <module>'
    assert say(own, fault, logging.ERROR) == "seeds = [] is empty\n"
    assert say(own, "Building DAG of jobs...") == ""
    assert say(own, "Nothing to be done (all requested files are present).") != ""


def test_names_shorten_long_lists_of_variants():
    rows = [{"folder": FOLDER, "variant": name} for name in "abcde"]
    assert variants_by_folder(rows) == {FOLDER: "a, b, c and 2 more"}
    variants = variants_by_folder(rows[:1])
    assert name_of(WILDCARDS | {"split": "test"}, variants) == "vision · seed 0 · a · test"
    assert name_of(WILDCARDS, {}) == "vision · seed 0 · router-1a2b"
    assert name_of({}, {}) == ""
