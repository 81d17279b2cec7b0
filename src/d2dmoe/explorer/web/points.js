// What is chosen, and the operating points that follow from it.
const SCALES = DATA.scales.map((scale) => ({
  ...scale,
  tables: Object.fromEntries(Object.entries(scale.tables).map(([name, packed]) => [name, new Table(packed)])),
}));
const TIMINGS = DATA.timings.map((timing) => ({ ...timing, table: new Table(timing.table) }));
const DENSE = ["dense", "dense_finetuned"];
const KINDS = { quality: "quality", flops: "FLOPs", ms: "milliseconds", knob: "τ" };
const CHOSEN_FIRST = { quality: 99, flops: 60, ms: null, knob: 0 };

const state = { view: "budgets", scale: 0, task: "", metric: "", variants: [], seeds: [], kind: "quality", budgets: { ...CHOSEN_FIRST }, whole: false, point: null, timing: 0, shape: 0, spent: null, share: 30, load: null };

const scaleNow = () => SCALES[state.scale];
const taskNow = () => scaleNow()?.tasks.find((task) => task.name === state.task);
const variantOf = (name) => taskNow().variants.find((variant) => variant.name === name);

/** Start with a task: its main metric, the figure's variants, all seeds. */
function chooseTask(name) {
  state.task = name;
  const task = taskNow();
  state.metric = task.metrics[0];
  state.variants = [...task.chosen];
  state.seeds = seedsOf(task);
  state.point = null;
  state.budgets.ms = null;
  state.budgets.knob = 0;
  state.load = null;
}

function chooseScale(place) {
  state.scale = place;
  const tasks = scaleNow()?.tasks ?? [];
  if (tasks.length) chooseTask((tasks.find((task) => task.name === state.task) ?? tasks[0]).name);
}

function seedsOf(task) {
  const { tradeoff } = scaleNow().tables;
  return [...new Set(tradeoff.where({ task: task.name }).map((place) => tradeoff.columns.seed[place]))].sort(d3.ascending);
}

const isDense = (variant) => DENSE.includes(variant.name);

/** The rows of a table that are of a variant and the chosen seeds. */
function rowsOf(table, variant, more = {}) {
  const rows = scaleNow().tables[table]?.rows({ task: state.task, variant: variant.name, ...more }) ?? [];
  return rows.filter((row) => state.seeds.includes(row.seed));
}

/** A variant's operating points, cheapest first: means over the chosen seeds, with deviations. */
function pointsOf(variant) {
  const groups = d3.group(rowsOf("tradeoff", variant, { metric: state.metric }), (row) => row.knob_value);
  const points = [...groups].map(([value, rows]) => {
    const values = (name) => rows.map((row) => row[name]);
    const point = {
      variant, rows, value, knob: rows[0].knob, seeds: rows.length,
      ratio: mean(values("flops_ratio")), flops: mean(values("flops")), params: mean(values("params")),
      quality: mean(values("value")), error: deviation(values("value")),
      relative: mean(values("relative_value")), relativeError: deviation(values("relative_value")),
    };
    point.executed = executed(point);
    return point;
  });
  points.forEach((point) => { point.ms = millisecondsOf(point); });
  return d3.sort(points, (point) => point.ratio);
}

const symbolOf = (point) => taskNow().symbols[point.knob] ?? point.knob.replaceAll("_", " ");
const valueOf = (point) => (point.value == null ? NOTHING : `${symbolOf(point)} = ${point.value}`);

/** Executed experts of a point by layer: share and deviation over tokens, means over the chosen seeds. */
function layersOf(point, role = "ffn") {
  const rows = point.value == null ? [] : rowsOf("layers", point.variant, { knob: point.knob, knob_value: point.value, role });
  return d3.sort([...d3.group(rows, (row) => row.layer)].map(([layer, own]) => ({
    layer, share: mean(own.map((row) => row.experts / row.num_experts)), tokens: mean(own.map((row) => row.std / row.num_experts)),
    experts: mean(own.map((row) => row.experts)), all: own[0].num_experts,
  })), (row) => row.layer);
}

/** Share of the FFNs' experts that a point runs; null without experts. */
function executed(point) {
  const layers = layersOf(point);
  return layers.length ? d3.sum(layers, (row) => row.experts) / d3.sum(layers, (row) => row.all) : null;
}

/** The parts of a point's cost, in FLOPs per sample; empty where no table tells them. */
function partsOf(point) {
  const { cost } = point.variant;
  if (!cost) return {};
  const parts = { ...cost.fixed };
  for (const [role, each] of Object.entries(cost.each)) {
    const rows = layersOf(point, role);
    if (!rows.length) return {};
    const name = role === "ffn" ? "FFNs" : "attention's experts";
    parts[name] = (parts[name] ?? 0) + each * d3.sum(rows, (row) => row.experts);
  }
  return parts;
}

/** Tables of timed models that are the task's own. */
function ownTimings() {
  const { tradeoff } = scaleNow().tables;
  const model = tradeoff.columns.model[tradeoff.where({ task: state.task })[0]];
  return TIMINGS.filter(({ table }) => table.columns.model?.includes(model)).map(({ table, name }) => ({ name, rows: table.rows({ model }) }));
}

/** Median time of a point by its share of executed experts, as timed with as many experts; null where
    nothing tells it. */
function millisecondsOf(point) {
  const rows = ownTimings().flatMap((timing) => timing.rows);
  if (!rows.length) return null;
  const first = rows[0];
  const same = rows.filter((row) => ["device", "dtype", "batch", "mask"].every((name) => row[name] === first[name]));
  if (isDense(point.variant)) return d3.min(same.filter((row) => row.backend.startsWith("dense_")), (row) => row.median_ms) ?? null;
  if (point.executed == null) return null;
  const experts = layersOf(point)[0].all;
  const own = same.filter((row) => row.backend === "dynamic_k" && row.num_experts === experts);
  return timeAt(own, point.executed);
}

/** Time at a share of executed experts, between the timed ones; null beyond them. */
function timeAt(rows, share) {
  const line = d3.sort(rows, (row) => row.fraction);
  const after = line.findIndex((row) => row.fraction >= share);
  if (after < 0 || (after === 0 && line[0].fraction > share)) return null;
  if (line[after].fraction === share) return line[after].median_ms;
  const [low, high] = [line[after - 1], line[after]];
  return low.median_ms + ((high.median_ms - low.median_ms) * (share - low.fraction)) / (high.fraction - low.fraction);
}

/** The point of a variant that the budget chooses; null if none fits. */
function chosenOf(points) {
  const budget = state.budgets[state.kind];
  const best = (fitting) => d3.greatest(fitting, (a, b) => d3.ascending(a.relative, b.relative) || d3.descending(a.ratio, b.ratio)) ?? null;
  if (state.kind === "quality") return d3.least(points.filter((p) => 100 * p.relative >= budget), (p) => p.ratio) ?? null;
  if (state.kind === "flops") return best(points.filter((p) => 100 * p.ratio <= budget));
  if (state.kind === "ms") return best(points.filter((p) => p.ms != null && p.ms <= budget));
  return points.find((p) => p.knob === "dynamic_k" && p.value === knobValues()[budget]) ?? null;
}

/** All values of τ that the task's rows have. */
function knobValues() {
  const { tradeoff } = scaleNow().tables;
  const places = tradeoff.where({ task: state.task, knob: "dynamic_k" });
  return [...new Set(places.map((place) => tradeoff.columns.knob_value[place]))].sort(d3.ascending);
}

/** What the summary says at exactly this budget, of all seeds: an estimate and its interval. */
function intervalOf(variant) {
  const row = scaleNow().tables.summary?.rows({ task: state.task, variant: variant.name, metric: state.metric })[0];
  const budget = state.budgets[state.kind];
  const key = { quality: `flops_ratio_at_${budget}`, flops: `quality_at_${budget / 100}` }[state.kind];
  if (!row || !key || !(key in row) || state.seeds.length < seedsOf(taskNow()).length) return null;
  return { what: state.kind === "quality" ? "FLOPs" : "quality", value: row[key], low: row[`${key}_low`], high: row[`${key}_high`] };
}
