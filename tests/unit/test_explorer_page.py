"""Laws of the explorer in a browser: its page shows what the tables say, in any state, anywhere."""

import json
import math
import random
import shutil
from itertools import combinations
from pathlib import Path

import pandas as pd
import pytest
from small_browser import opened, started
from small_colours import APART, least
from small_explorer import (
    State,
    assert_shown,
    cells,
    fixed,
    mean,
    move,
    percent,
    summary_of,
    table,
)

from d2dmoe.explorer.columns import columns
from d2dmoe.explorer.page import write_page
from d2dmoe.plan.explored import published

pytestmark = [pytest.mark.browser, pytest.mark.workflow]

REFERENCE = Path(__file__).parents[2] / "results/reference"
TABLES = next(path for path in sorted(REFERENCE.glob("*/tables")))
STATES = 55
VIEWS = ("budgets", "latency", "maps", "claims")


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("explorer") / "page.html"
    write_page(path, published(REFERENCE))
    return path


@pytest.fixture(scope="module")
def browser():
    with started() as found:
        yield found


@pytest.fixture(scope="module")
def page(browser, file):
    with opened(browser, file, viewport={"width": 1440, "height": 900}) as (shown, said):
        yield shown
        assert said == []  # no error, no request


@pytest.fixture(scope="module")
def tables() -> dict[str, pd.DataFrame]:
    return {name: table(TABLES, name) for name in ("tradeoff", "layers", "activity")}


@pytest.fixture(scope="module")
def summary() -> pd.DataFrame | None:
    return summary_of(TABLES)


def test_every_state_shows_what_the_tables_say(page, tables, summary):
    rng, moved = random.Random(0), set()
    page.click("#view-budgets")
    for _ in range(STATES):
        moved |= {move(page, rng) for _ in range(3)}
        assert_shown(page, tables, summary)
    assert moved == {"task", "metric", "kind", "budget", "variant", "seed", "whole"}


def test_the_parts_of_a_cost_come_to_the_whole(page):
    parts = page.evaluate(
        "SCALES[0].tasks.map(t => { chooseTask(t.name); return t.variants.flatMap("
        "v => pointsOf(v).map(p => [p.flops, Object.values(partsOf(p))])) })"
    )
    page.reload()
    told = [(whole, own) for task in parts for whole, own in task if own]
    assert len(told) > 20
    for whole, own in told:
        assert sum(own) == pytest.approx(whole, rel=1e-6) and min(own) >= 0


def test_active_neurons_are_the_means_of_the_histograms(page, tables):
    page.click("#view-budgets")
    state, shown = State(page), cells(page, "#activity")
    assert shown
    for variant, (_name, *found) in shown.items():
        by_layer = []
        for _layer, own in state.rows(tables["activity"], variant).groupby("layer"):
            moments = []
            for _seed, rows in own.groupby("seed", sort=False):
                total = rows["tokens"].sum()
                middle = (rows["active"] * rows["tokens"]).sum() / total
                square = (rows["active"] ** 2 * rows["tokens"]).sum() / total
                moments.append((middle, math.sqrt(max(square - middle**2, 0))))
            active, tokens = zip(*moments, strict=True)
            by_layer.append(f"{fixed(mean([*active]), 1)} ± {fixed(mean([*tokens]), 1)}")
        assert found == by_layer


def test_a_click_on_a_point_or_a_method_shows_its_rows(page, tables):
    page.click("#view-budgets")
    name = page.locator("#results button").first
    variant = name.get_attribute("id").removeprefix("row-")
    name.press("Enter")  # by the keyboard
    state = State(page)
    point = state.chosen(tables, variant)
    rows = page.locator("#point table").first.locator("tbody tr")
    assert rows.count() == len(point["rows"])
    shown = rows.first.locator("td").all_text_contents()
    assert str(float(point["rows"]["flops_ratio"].iloc[0])) in shown
    page.locator("#shown svg g[aria-label=dot] path").nth(2).click(force=True)
    assert page.locator("#point h2").count() == 1


def test_times_are_those_of_the_benchmarks(page):
    page.click("#view-latency")
    rng, tables_of = random.Random(1), page.locator("#timing option").all_text_contents()
    for place, name in enumerate(tables_of):
        page.select_option("#timing", str(place))
        folder, table = name.split(": ")
        rows = pd.read_csv(REFERENCE / folder / f"{table}.csv")
        shapes = page.locator("#shape option").count()
        page.select_option("#shape", str(rng.randrange(shapes)))
        page.fill("#share", str(rng.randrange(10, 101)))
        page.fill("#spent", page.get_attribute("#spent", "max"))
        assert page.locator(".advice").count() >= 1
        numbers = page.evaluate(
            "[...document.querySelectorAll('#shown figure details tbody tr')]"
            ".map(row => row.cells[2].textContent)"
        )
        assert numbers and {*numbers} <= {fixed(x, 4) for x in rows["median_ms"]}


def test_a_budget_of_time_chooses_by_times_between_those_measured(browser, tmp_path, tables):
    first = tables["tradeoff"].iloc[0]
    layers = tables["layers"]
    experts = int(layers[layers["task"] == first["task"]]["num_experts"].iloc[0])
    shape = {"device": "a GPU", "dtype": "bf16", "model": first["model"], "batch": 1}
    shape |= {"num_experts": experts, "expert_size": 8, "mask": "router"}
    timed = [(1.0, "dense_eager", 10.0), (0.0, "dynamic_k", 2.0), (1.0, "dynamic_k", 12.0)]
    rows = [
        shape | {"fraction": share, "backend": form, "median_ms": ms, "p20_ms": ms, "p80_ms": ms}
        for share, form, ms in timed
    ]
    packed = columns(pd.DataFrame(rows))
    file = tmp_path / "timed.html"
    write_page(file, published(REFERENCE) | {"timings": [{"name": "gpu: model", "table": packed}]})
    with opened(browser, file) as (page, said):
        page.select_option("#task", first["task"])
        page.check("#kind-ms")
        chosen = "shownMethods().filter(m => m.point?.executed != null).map(m => m.point)"
        found = page.evaluate(f"{chosen}.map(p => [p.executed, p.ms])")
        assert found and all(ms == pytest.approx(2 + 10 * share) for share, ms in found)
        page.click("#view-latency")
        assert page.locator("#quality-over-time svg").count() == 1 and said == []


TAUS, PATCHES = (0.0, 0.1, 0.35, 1.0), 16
WORDS = ["[CLS]", " the", "nan", " 1", "\n", "<b>", "é"]


@pytest.fixture(scope="module")
def token_load(tables) -> pd.DataFrame:
    """Random loads of every published task, of images where it has load maps."""
    rng, rows = random.Random(2), []
    mapped = {path.parent.name for path in REFERENCE.glob("*/tables/*/load_maps.safetensors")}
    dynamic = tables["tradeoff"].query("knob == 'dynamic_k'")
    for task, of_task in dynamic.groupby("task", sort=False):
        point = of_task.iloc[0][["task", "method", "variant", "seed", "knob"]].to_dict()
        images = task in mapped
        for tau in TAUS:
            for sample in range(8 if images else 3):
                for position in range(PATCHES if images else 5 + sample):
                    token = "" if images else json.dumps(WORDS[position % len(WORDS)])
                    at = {"knob_value": tau, "sample": sample, "position": position}
                    load = {"experts": rng.randrange(97), "num_experts": 96}
                    rows.append(point | at | {"token": token} | load)
    return pd.DataFrame(rows)


def test_loads_of_patches_and_tokens_are_the_tables_at_every_tau(browser, tmp_path, token_load):
    folder = Path("reference", TABLES.parent.name)
    shutil.copytree(TABLES.parent, tmp_path / folder)
    tables = tmp_path / folder / "tables"
    token_load.to_csv(tables / "token_load.csv", index=False)
    file = tmp_path / "loads.html"
    write_page(file, published(tmp_path / "reference"))
    kinds = set()
    with opened(browser, file, viewport={"width": 375, "height": 800}) as (page, said):
        page.click("#view-maps")
        for task, rows in token_load.groupby("task", sort=False):
            page.select_option("#task", task)
            page.focus("#load")
            page.keyboard.press("Home")  # by the keyboard
            for tau in TAUS:
                assert page.text_content("#load-text") == f"τ = {tau:g}"
                at = rows[rows["knob_value"] == tau]
                kinds.add(_shown_loads(page, [own for _, own in at.groupby("sample")]))
                assert page.evaluate("document.documentElement.scrollWidth") <= 375
                assert page.evaluate(CONTRASTS) == []
                page.keyboard.press("ArrowRight")
        assert said == []
    assert kinds == {"images", "texts"}


def _shown_loads(page, samples: list[pd.DataFrame]) -> str:
    """Whether images or texts are shown; their loads are those of the samples."""
    captions = page.locator("#maps figcaption, #texts figcaption").all_text_contents()
    means = [percent(mean([*own["experts"]]) / 96) for own in samples]
    assert [text.rsplit(": ", 1)[1] for text in captions] == [f"{x} of the experts" for x in means]
    if page.locator("#maps").count():
        titles = page.locator("#maps svg title").all_text_contents()
        shares = [percent(n / 96) for own in samples for n in own["experts"]]
        assert [x.split(": ")[1] for x in titles] == [f"{x} (executed experts)" for x in shares]
        return "images"
    for place, own in enumerate(samples):
        spans = page.locator(f"[data-text='{place}'] .tokens span")
        counts = [f"{n} of 96 experts" for n in own["experts"]]
        assert spans.evaluate_all("all => all.map(x => x.title)") == counts
        words = [json.loads(token).replace("\n", "↵") for token in own["token"]]
        assert spans.all_text_contents() == words
        grounds = spans.evaluate_all("all => all.map(x => x.style.backgroundColor)")
        shades = dict(zip(own["experts"], grounds, strict=True))
        assert [shades[n] for n in own["experts"]] == grounds
        assert len({*grounds}) == own["experts"].nunique()
    return "texts"


def test_every_claim_is_there_with_its_verdicts(page):
    page.click("#view-claims")
    folders = sorted(path.parent for path in REFERENCE.glob("*/tables"))
    for folder in reversed(folders):  # the first is left chosen
        page.select_option("#scale", label=folder.name)
        _claims_are_shown(
            page, [*folder.glob("tables/**/claims.csv"), *REFERENCE.glob("*/claims.csv")]
        )
    page.locator("[data-claim] details summary").first.click()
    assert page.locator("[data-claim] details table").count() >= 1


def _claims_are_shown(page, ledgers: list[Path]) -> None:
    rows = pd.concat([pd.read_csv(path, keep_default_na=False) for path in ledgers])
    shown = page.locator("[data-claim]").evaluate_all("all => all.map(x => x.dataset.claim)")
    assert set(shown) == set(rows["claim"])
    for claim in shown:
        text = page.locator(f"[data-claim={claim}]").text_content()
        tested = rows[(rows["claim"] == claim) & (rows["verdict"] != "not tested")]
        assert all(measured in text for measured in tested["measured"])


def test_tabs_are_reached_by_the_keyboard(page):
    page.focus("#view-budgets")
    page.click("#view-budgets")
    for name in (*VIEWS[1:], VIEWS[0]):
        page.keyboard.press("ArrowRight")
        assert page.evaluate("document.activeElement.id") == f"view-{name}"
        assert page.get_attribute(f"#view-{name}", "aria-selected") == "true"


@pytest.mark.parametrize("width", [375, 1440])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_and_can_be_read_at_any_width_light_and_dark(browser, file, width, scheme):
    size = {"width": width, "height": 800}
    with opened(browser, file, viewport=size, color_scheme=scheme) as (page, said):
        for view in VIEWS:
            page.click(f"#view-{view}")
            assert page.evaluate("document.documentElement.scrollWidth") <= width, view
        page.click("#view-claims")
        pale = page.evaluate(CONTRASTS)
        page.click("#view-budgets")
        pale += page.evaluate(CONTRASTS)
        assert pale == [] and said == []


CONTRASTS = """() => {
  const ground = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const colour = getComputedStyle(e).backgroundColor;
      if (!/, 0\\)$/.test(colour)) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const texts = [...document.querySelectorAll("body *")].filter((e) =>
    !e.closest("svg, script, .skip, option") && e.checkVisibility() && !e.disabled &&
    [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim()));
  return texts.filter((e) => contrast(getComputedStyle(e).color, ground(e)) < 4.5)
    .map((e) => e.outerHTML.slice(0, 80));
}"""


def test_no_two_methods_shown_first_look_alike_without_colour(page):
    looks = page.evaluate(
        "SCALES.flatMap(s => s.tasks.map(t => t.variants.filter(v => t.chosen.includes(v.name))"
        ".map(v => v.look.marker + v.look.dashes + v.look.hollow)))"
    )
    assert looks and all(len({*own}) == len(own) for own in looks)
    drawn = "SCALES.flatMap(s => s.tasks.flatMap(t => t.variants.map(v => v.look.marker)))"
    assert set(page.evaluate(drawn)) <= set(page.evaluate("Object.keys(SYMBOLS)"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_methods_shown_first_differ_by_colour_for_every_vision_or_else_by_signs(
    browser, file, scheme
):
    with opened(browser, file, color_scheme=scheme) as (page, said):
        looks = page.evaluate(
            "SCALES.flatMap(s => s.tasks.map(t => t.variants.filter(v => t.chosen.includes(v.name))"
            ".map(v => [d3.color(colourOf(v.look)).formatHex(),"
            " v.look.marker + v.look.dashes + v.look.hollow])))"
        )
        assert said == []
    pairs = [pair for own in looks for pair in combinations(own, 2)]
    assert len(pairs) > 10
    for (colour, signs), (other, others) in pairs:
        assert least(colour, other) >= APART or signs != others


def test_print_shows_the_view_without_its_controls(page):
    page.click("#view-budgets")
    page.emulate_media(media="print")
    assert not page.locator("#views").is_visible() and not page.locator("#budget").is_visible()
    assert page.locator("#results").is_visible()
    page.emulate_media(media="screen")


def test_which_tau_keeps_99_percent_takes_one_action(page):
    page.reload()
    options = page.locator("#task option").evaluate_all("all => all.map(x => x.value)")
    page.select_option("#task", options[-1])
    assert "at least 99 %" in page.text_content("#asked")
    answer = page.text_content("#answer")
    assert " of the quality and costs " in answer or "None of the methods" in answer


def test_it_is_small(file):
    assert file.stat().st_size < 4e6
