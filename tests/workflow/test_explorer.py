"""`all` ends with a page; in a browser, of a user's own two variants of images and of texts."""

import random
from pathlib import Path

import pandas as pd
import pytest
from small_browser import opened, started
from small_explorer import assert_shown, mean, move, percent, summary_of, table

from workflow.conftest import Workspace, tiny

pytestmark = pytest.mark.workflow

PAGE = "results/explorer/main.html"
TOKENS = "token_load.csv"
STATES = 12
SHORT = {"epochs": 1, "lr": 0.001, "batch_size": 16}
VARIANTS = {
    "mine": {"method": "d2dmoe", "label": "mine & <new>"},
    "theirs": {"method": "moefication", "label": "theirs"},
}
TEXTS = {
    "data": {
        "kind": "texts",
        "source": "vendored:wikipedia-topics",
        "length": 24,
        "validation": 40,
        "max_train": 200,
        "max_test": 60,
        "tokenizer": {"source": "train", "vocab_size": 400},
    },
    "model": {
        "architecture": "bert",
        "weights": "scratch",
        "layers": 2,
        "d_model": 32,
        "heads": 2,
        "d_ff": 64,
        "positions": 24,
    },
    "dense": SHORT,
    "sparsify": {"mode": "relu_hoyer", "alpha": 0.001} | SHORT,
    "clustering": {"expert_size": 8},
    "router": {"kind": "regression", "width": 4} | SHORT,
    "select": {"dynamic_k": [0.0, 0.1, 0.3, 0.6, 1.0], "top_k": [1, 4, 8]},
    "variants": VARIANTS,
    "figures": {"tradeoff": [*VARIANTS]},
}


def config() -> dict:
    """Of `tiny.yaml` the images, with two variants of other names; and a task of texts."""
    images = tiny()["tasks"]["tiny"]
    for key in ("ablations", "compatibility", "neighbours", "bases", "tuning"):
        images.pop(key, None)
    images["dense"]["epochs"] = 3
    maps = images["figures"]["load_maps"] | {"variant": "mine"}
    images |= {"variants": VARIANTS, "figures": {"tradeoff": [*VARIANTS], "load_maps": maps}}
    return {"seeds": [0], "tasks": {"pictures": images, "topics": TEXTS}}


def tokens(workspace: Workspace) -> pd.DataFrame:
    return pd.read_csv(workspace.folder / "results/tables" / TOKENS, keep_default_na=False)


def test_all_ends_with_the_page_and_repeats_nothing(finished):
    assert (finished.folder / PAGE).stat().st_size < 4e6
    assert finished.planned("all") == finished.planned(PAGE) == set()


def test_what_is_published_has_the_load_of_tokens(finished):
    finished.make("publish")
    published = finished.folder / "results/published/tables" / TOKENS
    assert published.read_text() == (finished.folder / "results/tables" / TOKENS).read_text()
    assert published.stat().st_size < 100_000


def test_more_tau_runs_fewer_experts_of_patches(finished):
    assert_fewer_with_tau(finished)


def test_more_tau_runs_fewer_experts_of_words(finished_language):
    assert_fewer_with_tau(finished_language)


def assert_fewer_with_tau(workspace: Workspace) -> None:
    for _task, rows in tokens(workspace).groupby("task"):
        loads = rows.groupby("knob_value")["experts"].mean()
        assert loads.is_monotonic_decreasing and loads.iloc[0] == rows["num_experts"].iloc[0]
        assert loads.iloc[-1] < loads.iloc[0]


@pytest.fixture(scope="module")
def browser():
    with started() as found:
        yield found


@pytest.fixture(scope="module")
def own(browser, tmp_path_factory) -> Workspace:
    """Where there is a browser alone: it trains for long."""
    workspace = Workspace(tmp_path_factory.mktemp("explorer") / "project", config())
    workspace.make("all")
    return workspace


@pytest.fixture(scope="module")
def page(own) -> Path:
    return own.folder / PAGE


@pytest.mark.browser
def test_the_page_shows_the_users_results_in_any_state(browser, own, page):
    folder = own.folder / "results/tables"
    tables = {name: table(folder, name) for name in ("tradeoff", "layers", "activity")}
    rng = random.Random(0)
    with opened(browser, page) as (shown, said):
        names = shown.locator("label:has(input[id^=variant-])").all_inner_texts()
        assert [name.strip() for name in names] == [x["label"] for x in VARIANTS.values()]
        for _ in range(STATES):
            for _ in range(3):
                move(shown, rng)
            assert_shown(shown, tables, summary_of(folder))
        for view in ("latency", "claims"):
            shown.click(f"#view-{view}")
            assert shown.locator("#content").inner_text()
        assert said == []


@pytest.mark.browser
def test_the_page_shows_loads_at_every_tau(browser, own, page):
    with opened(browser, page) as (shown, said):
        shown.click("#view-maps")
        for task, rows in tokens(own).groupby("task", sort=False):
            shown.select_option("#task", task)
            for place, (tau, at) in enumerate(rows.groupby("knob_value")):
                shown.fill("#load", str(place))
                assert shown.text_content("#load-text") == f"τ = {tau:g}"
                captions = shown.locator("#maps figcaption, #texts figcaption").all_text_contents()
                shares = at["experts"] / at["num_experts"]
                means = [percent(mean([*x])) for _, x in shares.groupby(at["sample"])]
                assert [text.split(": ")[1].split(" of")[0] for text in captions] == means
        assert said == []
