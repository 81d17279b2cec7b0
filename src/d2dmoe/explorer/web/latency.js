// Times over the share of experts that run, by size of the experts, beside the dense forms.
const NOT_SHAPE = ["torch", "triton", "num_experts", "expert_size", "fraction", "backend", "median_ms", "p20_ms", "p80_ms", "peak_mb"];

/** What was timed: the rows of each model or layer, machine, number format and kind of mask. */
function shapesOf(table) {
  const names = table.names.filter((name) => !NOT_SHAPE.includes(name));
  const groups = d3.group(table.rows({}), (row) => names.map((name) => row[name]).join(", "));
  return [...groups.values()].map((rows) => ({ rows, title: shapeTitle(rows[0]) }));
}

function shapeTitle(row) {
  const mask = DATA.masks[row.mask] ?? `${row.mask} masks`;
  const context = row.context ? ` after ${grouped(row.context)} tokens` : "";
  const what = row.model ? `${row.model}, batch ${row.batch}${context}` : `${grouped(row.tokens)} tokens, d_model ${row.d_model}, ${row.activation}`;
  return `${what}, ${row.dtype}, ${mask}, ${row.device}`;
}

const isFlat = (backend) => backend.startsWith("dense_");
const formOf = (backend) => DATA.backends[backend] ?? { label: backend, look: { colour: "#8C564B", marker: "o", dashes: [], hollow: false } };
const SIZE_PLACES = ["o", "s", "^", "D", "v", "P"];
const SIZE_COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#882255"];

/** The forms and sizes that were timed, each with its line. */
function seriesOf(rows) {
  const sizes = [...new Set(rows.filter((row) => !isFlat(row.backend)).map((row) => row.expert_size))].sort(d3.ascending);
  const groups = [...d3.group(rows, (row) => (isFlat(row.backend) ? row.backend : `${row.backend} ${row.expert_size}`)).values()];
  return groups.map((own) => {
    const { backend, expert_size: size } = own[0];
    const { label, look } = formOf(backend);
    if (isFlat(backend)) return { backend, size: null, label, look, rows: own, ms: d3.median(own, (row) => row.median_ms) };
    const place = sizes.indexOf(size);
    const bySize = sizes.length > 1 ? { ...look, colour: SIZE_COLOURS[place % SIZE_COLOURS.length], marker: backend === "dynamic_k" ? SIZE_PLACES[place % SIZE_PLACES.length] : look.marker } : look;
    return { backend, size, label: `${label}, experts of ${size}`, look: bySize, rows: d3.sort(own, (row) => row.fraction) };
  });
}

const bestDense = (series) => d3.least(series.filter((one) => one.size == null), (one) => one.ms);

/** The largest share of experts up to which a form is as fast as so many milliseconds; null if it never is. */
function breakEven(one, ms) {
  const fast = one.rows.filter((row) => row.median_ms <= ms);
  if (!fast.length) return null;
  const last = d3.greatest(fast, (row) => row.fraction);
  const next = one.rows.find((row) => row.fraction > last.fraction);
  if (!next) return last.fraction;
  return last.fraction + ((next.fraction - last.fraction) * (ms - last.median_ms)) / (next.median_ms - last.median_ms);
}

function latencyControls(update, rebuild) {
  const shapes = shapesOf(TIMINGS[state.timing].table);
  const times = shapes[state.shape].rows.map((row) => row.median_ms);
  const max = d3.max(times);
  const step = 10 ** Math.floor(Math.log10(max) - 2);
  state.spent ??= bestDense(seriesOf(shapes[state.shape].rows))?.ms ?? max;
  const text = () => `${Number(state.spent.toPrecision(4))} ms`;
  const shown = h("output", { for: "spent" }, text());
  const slider = h("input", { type: "range", id: "spent", "aria-label": "Milliseconds", min: step, max: Math.ceil(max / step) * step, step: "any", oninput: () => { state.spent = Number(slider.value); shown.textContent = text(); update(); } });
  slider.value = state.spent;
  const share = h("input", { type: "range", id: "share", "aria-label": "Executed experts in %", min: 1, max: 100, step: 1, oninput: () => { state.share = Number(share.value); shareText.textContent = `${state.share} % of the experts`; update(); } });
  share.value = state.share;
  const shareText = h("output", { for: "share" }, `${state.share} % of the experts`);
  return h("div", { class: "controls" },
    selectOf("timing", "Table", TIMINGS.map((timing, place) => [place, timing.name]), state.timing, (value) => { Object.assign(state, { timing: Number(value), shape: 0, spent: null }); rebuild(); }),
    selectOf("shape", "What was timed", shapes.map((shape, place) => [place, shape.title]), state.shape, (value) => { Object.assign(state, { shape: Number(value), spent: null }); rebuild(); }),
    h("fieldset", {}, h("legend", {}, "Budget of time"), slider, shown),
    h("fieldset", {}, h("legend", {}, "Executed experts"), share, shareText));
}

function latencyContent(width) {
  const shape = shapesOf(TIMINGS[state.timing].table)[state.shape];
  const series = seriesOf(shape.rows);
  return [h("h2", {}, shape.title), ...adviceOf(series).map((text) => h("p", { class: "advice" }, text)), timesTable(series), timesChart(series, width), qualityOverTime(width)];
}

/** The recommendation in words. */
function adviceOf(series) {
  const dense = bestDense(series);
  const ours = d3.sort(series.filter((one) => one.backend === "dynamic_k"), (one) => one.size);
  if (!dense || !ours.length) return ["A dense form and dynamic-k were not both timed, so nothing can be recommended."];
  const share = state.share / 100;
  const found = ours.map((one) => ({ one, even: breakEven(one, dense.ms), ms: timeAt(one.rows, share) }));
  const sentences = found.map(({ one, even }) => (even == null ? `Experts of ${one.size} are never as fast as the best dense form.` : `Experts of ${one.size} are as fast as the best dense form up to ${percent(even)} of the experts.`));
  const faster = found.filter(({ ms }) => ms != null && ms < dense.ms);
  const best = d3.least(faster, ({ ms }) => ms);
  const smallest = d3.least(faster, ({ one }) => one.size);
  const start = `The best dense form (${dense.label}) takes ${fixed(dense.ms, 3)} ms.`;
  if (!best) return [[start, ...sentences].join(" "), `Recommended for a model that runs ${state.share} % of its experts: dense.`];
  const speed = ({ one, ms }) => `experts of ${one.size} (${fixed(ms, 3)} ms, ${fixed(dense.ms / ms, 2)} times as fast as dense)`;
  const other = smallest.one === best.one ? "" : ` The smallest that still gain, and keep more quality per FLOP: ${speed(smallest)}.`;
  return [[start, ...sentences].join(" "), `Recommended for a model that runs ${state.share} % of its experts: ${speed(best)}.${other}`];
}

function timesTable(series) {
  const dense = bestDense(series);
  const lines = series.map((one) => {
    const ms = one.size == null ? one.ms : timeAt(one.rows, state.share / 100);
    const even = one.size == null ? null : breakEven(one, state.spent);
    return { "data-series": `${one.backend} ${one.size ?? ""}`.trim(), cells: [h("span", { class: "method" }, swatch(one.look), one.label), fixed(ms, 3), ms == null || !dense ? NOTHING : `${fixed(dense.ms / ms, 2)} ×`, one.size == null ? NOTHING : percent(even)] };
  });
  const table = tableOf(`Times at ${state.share} % of the experts, and the share of experts within ${Number(state.spent.toPrecision(4))} ms`, ["Form", "Milliseconds", "Against the best dense", "Experts within the budget"], lines);
  table.id = "times";
  return table;
}

function timesChart(series, width) {
  const top = d3.max(series.filter((one) => one.backend !== "dynamic_k_deterministic").flatMap((one) => one.rows), (row) => row.p80_ms);
  const x = (row) => 100 * row.fraction;
  const marks = series.flatMap((one) => {
    const line = { stroke: colourOf(one.look), strokeWidth: 1.8, strokeDasharray: dashesOf(one.look) };
    if (one.size == null) return [Plot.ruleY([one.ms], line)];
    return [
      Plot.areaY(one.rows, { x, y1: "p20_ms", y2: "p80_ms", fill: colourOf(one.look), fillOpacity: 0.2, clip: true }),
      Plot.line(one.rows, { x, y: "median_ms", clip: true, ...line }),
      Plot.dot(one.rows.filter((row) => row.median_ms <= 1.1 * top), { x, y: "median_ms", title: (row) => `${one.label}, ${percent(row.fraction)}: ${fixed(row.median_ms, 3)} ms`, ...dotsOf(one.look, 4) }),
    ];
  });
  marks.push(Plot.ruleY([state.spent], { stroke: "var(--link)", strokeDasharray: "2 3", strokeWidth: 1.5, clip: true }));
  const lines = series.flatMap((one) => one.rows.map((row) => ({ cells: [one.label, percent(row.fraction), fixed(row.median_ms, 4), fixed(row.p20_ms, 4), fixed(row.p80_ms, 4)] })));
  return figureOf("Time over executed experts", "Median with its 20 and 80 % quantiles; dense forms have one time, whatever the share.", {
    width, height: 380, x: { label: "executed experts (%)", domain: [0, 102] }, y: { label: "milliseconds", domain: [0, 1.1 * top], grid: true }, marks,
  }, numbersOf("Times", ["Form", "Executed experts", "Median ms", "20 % quantile", "80 % quantile"], lines));
}

/** Quality over milliseconds, where a task's own model was timed. */
function qualityOverTime(width) {
  const methods = taskNow() && ownTimings().length ? shownMethods() : [];
  const points = methods.flatMap(({ points: all }) => all.filter((point) => point.ms != null));
  if (!points.some((point) => !isDense(point.variant))) return h("div", { id: "quality-over-time" }, h("h3", {}, "Quality over milliseconds"), noteOf("None of these results has both the quality and the time of one model, so quality over milliseconds cannot be shown."));
  const top = d3.max(points, (point) => 100 * point.relative);
  const visible = points.filter((point) => 100 * point.relative >= top - WINDOW);
  const marks = [...d3.group(visible, (point) => point.variant)].flatMap(([variant, own]) => [
    Plot.line(own, { x: "ms", y: (p) => 100 * p.relative, stroke: colourOf(variant.look), strokeDasharray: dashesOf(variant.look), strokeWidth: 2 }),
    Plot.dot(own, { x: "ms", y: (p) => 100 * p.relative, title: (p) => `${variant.label}, ${valueOf(p)}`, ...dotsOf(variant.look) })]);
  const lines = points.map((point) => ({ cells: [point.variant.label, valueOf(point), fixed(point.ms, 3), percent(point.relative, 2)] }));
  const figure = figureOf("Quality over milliseconds", `${taskNow().title}: the methods chosen in the view of budgets, timed as ${ownTimings()[0].name} says.`, { width, x: { label: "milliseconds", zero: true }, y: { label: "quality kept (%)", grid: true }, marks },
    numbersOf("Quality over milliseconds", ["Method", "Operating point", "Milliseconds", "Quality kept"], lines));
  figure.id = "quality-over-time";
  return figure;
}
