// The budget explorer: quality, cost and experts at a budget.
const WINDOW = 12; // % below the best that the chart shows, unless all of it is asked for
const BOUNDS = { quality: [80, 101, 0.5], flops: [5, 110, 1] };

const selectOf = (id, label, options, chosen, change) =>
  h("label", { for: id }, `${label} `, h("select", { id, onchange: (event) => change(event.target.value) },
    options.map(([value, text]) => h("option", { value, selected: String(value) === String(chosen) }, text))));

function budgetControls(update, rebuild) {
  const task = taskNow();
  const kinds = Object.entries(KINDS).map(([kind, name]) => {
    const reason = impossible(kind);
    return h("label", { class: "inline", title: reason },
      h("input", { type: "radio", name: "kind", id: `kind-${kind}`, value: kind, checked: state.kind === kind, disabled: Boolean(reason), onchange: () => { state.kind = kind; state.point = null; rebuild(); } }), ` ${name}`);
  });
  const reason = impossible("ms");
  return h("div", { class: "controls" },
    SCALES.length > 1 ? selectOf("scale", "Results", SCALES.map((scale, place) => [place, scale.name]), state.scale, (value) => { chooseScale(Number(value)); rebuild(); }) : null,
    selectOf("task", "Task", scaleNow().tasks.map((each) => [each.name, each.title]), state.task, (value) => { chooseTask(value); rebuild(); }),
    task.metrics.length > 1 ? selectOf("metric", "Measured by", task.metrics.map((name) => [name, name]), state.metric, (value) => { state.metric = value; update(); }) : null,
    h("fieldset", {}, h("legend", {}, "Budget"), kinds, budgetSlider(update), reason ? h("p", { class: "faint" }, reason) : null),
    h("fieldset", {}, h("legend", {}, "Methods"), ...methodLists(update)),
    h("fieldset", {}, h("legend", {}, "Seeds"), seedsOf(task).map((seed) => h("label", { class: "inline" },
      h("input", { type: "checkbox", id: `seed-${seed}`, checked: state.seeds.includes(seed), onchange: (event) => { toggle("seeds", seed, event.target); update(); } }), ` ${seed}`))));
}

/** Why a kind of budget cannot be had; null if it can. */
function impossible(kind) {
  if (kind === "ms" && !ownTimings().length) return "Milliseconds: none of the published times is of this task's model. The view of latency has those that there are.";
  if (kind === "knob" && !knobValues().length) return "No method of this task has τ.";
  return null;
}

/** Add or remove a value of a list; the last seed stays. */
function toggle(list, value, box) {
  const others = state[list].filter((each) => each !== value);
  if (list === "seeds" && !box.checked && !others.length) box.checked = true;
  else state[list] = box.checked ? [...others, value] : others;
}

function methodLists(update) {
  const groups = d3.group(taskNow().variants.filter((variant) => !isDense(variant)), (variant) => variant.suite);
  return [...groups].map(([suite, variants]) => {
    const boxes = variants.map((variant) => h("label", {},
      h("input", { type: "checkbox", id: `variant-${variant.name}`, checked: state.variants.includes(variant.name), onchange: (event) => { toggle("variants", variant.name, event.target); update(); } }),
      swatch(variant.look), variant.label));
    const open = variants.some((variant) => state.variants.includes(variant.name));
    return h("details", { open }, h("summary", {}, suite === "main" ? "main results" : suite), boxes);
  });
}

function budgetBounds() {
  if (BOUNDS[state.kind]) return BOUNDS[state.kind];
  if (state.kind === "knob") return [0, knobValues().length - 1, 1];
  const times = taskNow().variants.flatMap((variant) => pointsOf(variant).map((point) => point.ms)).filter((ms) => ms != null);
  const step = 10 ** Math.floor(Math.log10(d3.max(times)) - 2);
  return [Math.floor(d3.min(times) / step) * step, Math.ceil(d3.max(times) / step) * step, step];
}

function budgetText() {
  const budget = state.budgets[state.kind];
  return {
    quality: () => `at least ${budget} % of the better dense model's ${state.metric}`,
    flops: () => `at most ${budget} % of the dense model's FLOPs`,
    ms: () => `at most ${Number(budget.toPrecision(3))} ms`,
    knob: () => `τ = ${knobValues()[budget]}`,
  }[state.kind]();
}

function budgetSlider(update) {
  if (impossible(state.kind)) state.kind = "quality";
  const [min, max, step] = budgetBounds();
  state.budgets[state.kind] ??= max;
  const shown = h("output", { for: "budget", id: "budget-text" }, budgetText());
  const slider = h("input", { type: "range", id: "budget", "aria-label": `Budget: ${KINDS[state.kind]}`, min, max, step, "aria-valuetext": budgetText(), oninput: () => {
    state.budgets[state.kind] = Number(slider.value);
    state.point = null;
    shown.textContent = budgetText();
    slider.setAttribute("aria-valuetext", budgetText());
    update();
  } });
  slider.value = state.budgets[state.kind];
  return h("div", {}, slider, shown);
}

/** The methods that are shown, the dense models last, each with its points and the chosen one. */
function shownMethods() {
  const variants = taskNow().variants.filter((variant) => state.variants.includes(variant.name) || isDense(variant));
  return d3.sort(variants, isDense).map((variant) => {
    const points = pointsOf(variant);
    const point = isDense(variant) ? points[0] ?? null : chosenOf(points);
    return { variant, points, point };
  }).filter(({ points }) => points.length);
}

function budgetContent(width, update) {
  const methods = shownMethods();
  const choose = (point) => { state.point = { variant: point.variant.name, knob: point.knob, value: point.value }; update(); document.getElementById("point")?.scrollIntoView({ block: "nearest" }); };
  const chosen = methods.filter(({ point, variant }) => point && !isDense(variant));
  const half = width >= 820 ? (width - 32) / 2 : width;
  return [
    h("p", { id: "asked" }, `${taskNow().title}: ${budgetText()}.`),
    answerOf(methods),
    resultsTable(methods, choose),
    tradeoffChart(methods, width, choose, update),
    pointDetails(methods),
    h("div", { class: "pair" }, layersChart(chosen, half), partsChart(methods.filter(({ point }) => point), half), activityChart(methods, half)),
  ];
}

/** What the budget comes to, in a sentence. */
function answerOf(methods) {
  const fitting = methods.filter(({ point, variant }) => point && !isDense(variant));
  if (!fitting.length) return h("p", { id: "answer" }, "None of the methods shown has such an operating point.");
  const best = state.kind === "flops" || state.kind === "ms" || state.kind === "knob"
    ? d3.greatest(fitting, ({ point }) => point.relative) : d3.least(fitting, ({ point }) => point.ratio);
  const { point, variant } = best;
  const how = state.kind === "quality" ? "Cheapest" : "Best";
  return h("p", { id: "answer" }, `${how}: `, h("strong", {}, `${variant.label} at ${valueOf(point)}`), `, which keeps ${percent(point.relative)} of the quality and costs ${percent(point.ratio)} of the dense model's FLOPs.`);
}

function resultsTable(methods, choose) {
  const timed = ownTimings().length > 0;
  const summarised = Boolean(scaleNow().tables.summary);
  const heads = ["Method", "Operating point", "Quality kept", state.metric, "FLOPs", "FLOPs per sample", ...(timed ? ["Milliseconds"] : []), "Executed experts", "Parameters", ...(summarised ? ["At exactly this budget [95 % interval]"] : [])];
  const lines = methods.map(({ variant, point }) => {
    const name = [swatch(variant.look), " ", point ? h("button", { class: "plain", id: `row-${variant.name}`, onclick: () => choose(point) }, variant.label) : variant.label];
    const attributes = { "data-variant": variant.name, class: state.point?.variant === variant.name ? "chosen" : null };
    if (!point) return { ...attributes, cells: [h("span", { class: "method" }, name), "none", ...Array(heads.length - 2).fill(NOTHING)] };
    return { ...attributes, cells: [h("span", { class: "method" }, name), valueOf(point),
      spread(point.relative, point.relativeError, (x) => percent(x, 2)), spread(point.quality, point.error, (x) => fixed(x, 4)),
      percent(point.ratio), flops(point.flops), ...(timed ? [fixed(point.ms, 3)] : []), percent(point.executed), grouped(point.params),
      ...(summarised ? [intervalText(variant)] : [])] };
  });
  const seeds = `${state.seeds.length} seed${state.seeds.length === 1 ? "" : "s"}`;
  const caption = `Operating points within the budget, mean${state.seeds.length > 1 ? " ± standard deviation" : ""} of ${seeds}`;
  const table = tableOf(caption, heads, lines, (column) => column > 1);
  table.id = "results";
  return table;
}

function intervalText(variant) {
  const found = isDense(variant) ? null : intervalOf(variant);
  if (!found || found.value == null) return NOTHING;
  const ends = `[${percent(found.low)}, ${percent(found.high)}]`.replaceAll(" ", "\u00a0"); // in one line
  return `${found.what} ${percent(found.value)} ${ends}`;
}

function tradeoffChart(methods, width, choose, update) {
  const all = methods.flatMap(({ points }) => points);
  const best = d3.max(all, (point) => 100 * point.relative);
  const lowest = d3.min(all, (point) => 100 * point.relative);
  const bottom = state.whole ? lowest - 1 : Math.max(lowest - 1, best - WINDOW);
  const visible = all.filter((point) => 100 * point.relative >= bottom);
  const x = (point) => 100 * point.ratio;
  const y = (point) => 100 * point.relative;
  const marks = [Plot.ruleY([100], { stroke: "var(--faint)", strokeDasharray: "4 3" }), Plot.ruleY([99], { stroke: "var(--faint)", strokeWidth: 0.6 }), budgetLine()];
  for (const { variant, points } of methods) {
    const line = { stroke: colourOf(variant.look), strokeWidth: 2, strokeDasharray: dashesOf(variant.look) };
    if (points.length > 1) marks.push(Plot.line(points, { x, y, clip: true, ...line }));
    const spreads = points.filter((point) => point.relativeError != null && y(point) >= bottom);
    marks.push(Plot.ruleX(spreads, { x, y1: (p) => y(p) - 100 * p.relativeError, y2: (p) => y(p) + 100 * p.relativeError, stroke: colourOf(variant.look), clip: true }));
  }
  for (const { variant, points, point } of methods) {
    const shown = points.filter((each) => y(each) >= bottom);
    const title = (p) => `${variant.label}, ${valueOf(p)}: ${percent(p.relative)} of the quality, ${percent(p.ratio)} of the FLOPs`;
    marks.push(clickable(shown, { x, y, title, ...dotsOf(variant.look) }, choose));
    if (point && y(point) >= bottom) marks.push(Plot.dot([point], { x, y, r: 10, stroke: "currentColor", strokeWidth: 1.6, pointerEvents: "none" }));
  }
  const below = all.length - visible.length;
  const description = `${state.metric} relative to the better dense model over FLOPs relative to the dense model; means over seeds, bars of a standard deviation. Circles: what the budget chooses.${below ? ` ${below} operating points are below the axis.` : ""} Click a point for its row.`;
  const box = h("input", { type: "checkbox", id: "whole", checked: state.whole, onchange: (event) => { state.whole = event.target.checked; update(); } });
  const lines = all.map((point) => ({ cells: [point.variant.label, valueOf(point), percent(point.ratio), percent(point.relative, 2)] }));
  return figureOf("Quality over cost", description, {
    width, height: 380, x: { label: "FLOPs (% of the dense model's)", domain: padded(visible.map(x), 0.03) }, y: { label: "quality kept (%)", domain: [bottom, Math.max(100, best) + 0.8], grid: true }, marks: marks.filter(Boolean),
  }, h("div", {}, h("label", { class: "inline" }, box, " the whole range"), numbersOf("Quality over cost", ["Method", "Operating point", "FLOPs", "Quality kept"], lines)));
}

function padded(values, share) {
  const [low, high] = d3.extent(values);
  const margin = share * (high - low) || share;
  return [low - margin, high + margin];
}

function budgetLine() {
  const budget = state.budgets[state.kind];
  const line = { stroke: "var(--link)", strokeWidth: 1.5, strokeDasharray: "2 3", clip: true };
  if (state.kind === "quality") return Plot.ruleY([budget], line);
  return state.kind === "flops" ? Plot.ruleX([budget], line) : null;
}

function layersChart(methods, width) {
  const note = scaleNow().notes.layers;
  const rows = methods.flatMap(({ variant, point }) => layersOf(point).map((row) => ({ ...row, variant })));
  if (note || !rows.length) return h("div", {}, h("h3", {}, "Executed experts per layer"), noteOf(note ?? "None of these operating points runs experts."));
  const layers = [...new Set(rows.map((row) => row.layer))].sort(d3.ascending);
  const marks = [...d3.group(rows, (row) => row.variant)].flatMap(([variant, own]) => [
    Plot.line(own, { x: "layer", y: (row) => 100 * row.share, stroke: colourOf(variant.look), strokeWidth: 1.5, strokeDasharray: dashesOf(variant.look) }),
    Plot.dot(own, { x: "layer", y: (row) => 100 * row.share, title: (row) => `${variant.label}, layer ${row.layer}: ${percent(row.share)}`, ...dotsOf(variant.look) })]);
  const lines = [...d3.group(rows, (row) => row.variant)].map(([variant, own]) => ({ "data-variant": variant.name, cells: [variant.label, ...layers.map((layer) => percent(own.find((row) => row.layer === layer)?.share)) ] }));
  const figure = figureOf("Executed experts per layer", "Share of each FFN's experts that a token runs, at the points that the budget chooses.", {
    width, x: { label: "layer", type: "point", domain: layers }, y: { label: "executed experts (%)", domain: [0, 100], grid: true }, marks,
  }, numbersOf("Executed experts per layer", ["Method", ...layers.map((layer) => `layer ${layer}`)], lines));
  figure.id = "layers";
  return figure;
}

const PARTS = ["FFNs", "routers", "attention's experts", "attention", "attention, embedding and head", "embedding and head", "all else"];
const PART_COLOURS = ["#0072B2", "#E69F00", "#56B4E9", "#009E73", "#009E73", "#666666", "#666666"];

function partsChart(methods, width) {
  const rows = methods.flatMap(({ variant, point }) => Object.entries(partsOf(point)).map(([part, count]) => ({ variant, point, part, count, share: count / (point.flops / point.ratio) })));
  if (!rows.length) return h("div", {}, h("h3", {}, "What the cost is made of"), noteOf(scaleNow().notes.layers ?? "No table tells the parts of these methods' cost."));
  const parts = PARTS.filter((part) => rows.some((row) => row.part === part));
  const known = [...new Set(rows.map((row) => row.variant))];
  const labels = known.map((variant) => variant.label);
  const order = (row) => PARTS.indexOf(row.part);
  const bars = d3.sort(rows, order);
  const stacked = { x: (row) => 100 * row.share, y: (row) => row.variant.label, z: (row) => row.part, order: null };
  const marks = [
    Plot.barX(bars, Plot.stackX({ ...stacked, fill: (row) => PART_COLOURS[order(row)], stroke: "var(--paper)", title: (row) => `${row.variant.label}, ${row.part}: ${flops(row.count)}, ${percent(row.share)} of the dense model's cost` })),
    Plot.text(bars, Plot.stackX({ ...stacked, fill: (row) => inkOn(PART_COLOURS[order(row)]), text: (row) => (row.share > 0.07 ? String(Math.round(100 * row.share)) : "") })),
  ];
  const key = h("p", { class: "faint" }, "From left to right: ", parts.map((part, place) => [place ? ", " : "", h("span", { class: "key" }, swatchOf(PART_COLOURS[PARTS.indexOf(part)]), part)]).flat());
  const lines = known.map((variant) => ({ "data-variant": variant.name, cells: [variant.label, ...parts.map((part) => flops(rows.find((row) => row.variant === variant && row.part === part)?.count))] }));
  const figure = figureOf("What the cost is made of", "FLOPs per sample in % of the dense model's. The parts follow from how cost grows with the executed experts, and from the model's sizes.", {
    width, height: 60 + 30 * known.length, marginLeft: Math.min(170, 20 + 7 * d3.max(labels, (label) => label.length)), x: { label: "% of the dense model's FLOPs", grid: true }, y: { label: null, domain: labels, tickFormat: (text) => (text.length > 22 ? `${text.slice(0, 21)}…` : text) }, marks,
  }, h("div", {}, key, numbersOf("Parts of the cost", ["Method", ...parts], lines)));
  figure.id = "parts";
  return figure;
}

const swatchOf = (colour) => {
  const box = h("span", { "aria-hidden": "true" });
  box.style.cssText = `display:inline-block;width:.8em;height:.8em;background:${colour};margin-right:.25em;print-color-adjust:exact`;
  return box;
};

function activityChart(methods, width) {
  const note = scaleNow().notes.activity;
  const rows = methods.flatMap(({ variant }) => [...d3.group(rowsOf("activity", variant), (row) => row.layer)].map(([layer, own]) => ({
    variant, layer, active: mean(own.map((row) => row.mean)), share: mean(own.map((row) => row.mean / row.d_ff)), tokens: mean(own.map((row) => row.std)),
  })));
  const title = "Active neurons per token";
  if (note || !rows.length) return h("div", {}, h("h3", {}, title), noteOf(note ?? "Neurons were counted of no method shown: of the models alone that are fine-tuned to be sparse."));
  const layers = [...new Set(rows.map((row) => row.layer))].sort(d3.ascending);
  const groups = [...d3.group(d3.sort(rows, (row) => row.layer), (row) => row.variant)];
  const marks = groups.flatMap(([variant, own]) => [
    Plot.line(own, { x: "layer", y: (row) => 100 * row.share, stroke: colourOf(variant.look), strokeWidth: 1.5, strokeDasharray: dashesOf(variant.look) }),
    Plot.dot(own, { x: "layer", y: (row) => 100 * row.share, title: (row) => `${variant.label}, layer ${row.layer}: ${fixed(row.active, 1)} neurons`, ...dotsOf(variant.look) })]);
  const lines = groups.map(([variant, own]) => ({ "data-variant": variant.name, cells: [variant.label, ...layers.map((layer) => {
    const row = own.find((each) => each.layer === layer);
    return row ? `${fixed(row.active, 1)} ± ${fixed(row.tokens, 1)}` : NOTHING;
  })] }));
  const figure = figureOf(title, "Share of the hidden neurons that are not idle in the sparse model before its conversion, whatever the operating point.", {
    width, x: { label: "layer", type: "point", domain: layers }, y: { label: "active neurons (%)", grid: true, zero: true }, marks,
  }, numbersOf("Active neurons per token, mean ± standard deviation over tokens", ["Method", ...layers.map((layer) => `layer ${layer}`)], lines));
  figure.id = "activity";
  return figure;
}
