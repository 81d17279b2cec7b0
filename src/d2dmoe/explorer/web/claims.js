// What the paper claims, what was measured, and the rows behind it.
const SIGNS = { supported: "✓", contradicted: "✗", undecided: "?", "not tested": "○" };
const MOST_ROWS = 60; // shown of a table

function claimControls(update, rebuild) {
  return h("div", { class: "controls" }, SCALES.length > 1 ? selectOf("scale", "Results", SCALES.map((scale, place) => [place, scale.name]), state.scale, (value) => { chooseScale(Number(value)); rebuild(); }) : null);
}

function claimContent(_width, _update, show) {
  const { tables, notes } = scaleNow();
  if (!tables.claims) return [noteOf(notes.claims)];
  const timed = DATA.timed_claims.flatMap((claims) => new Table(claims).rows({}));
  const rows = [...tables.claims.rows({}).filter((row) => !timed.some((other) => other.claim === row.claim)), ...timed];
  const sorted = d3.sort(d3.group(rows, (row) => row.claim), ([claim]) => claim[0], ([claim]) => Number(claim.slice(1)));
  const tested = ([, own]) => own.some((row) => row.verdict !== "not tested");
  const sections = (claims) => claims.map(([claim, own]) => claimSection(claim, own, show));
  const others = sorted.filter((each) => !tested(each));
  return [h("p", {}, "Verdicts are computed from the tables. They hold for these models and data."),
    ...sections(sorted.filter(tested)),
    ...others.length ? [h("details", { class: "others" }, h("summary", {}, `Not tested by these results: ${others.map(([claim]) => claim).join(", ")}`), ...sections(others))] : []];
}

/** A claim; what another suite tests is left out where some suite does. */
function claimSection(claim, rows, show) {
  const tested = rows.filter((row) => row.verdict !== "not tested");
  const shown = [...tested, ...rows.filter((row) => row.verdict === "not tested" && !tested.some((other) => taskIn(other) === taskIn(row)))];
  const unique = [...d3.group(shown, (row) => `${row.where}|${row.verdict}|${row.measured}`).values()].map(([first]) => first);
  const counts = d3.rollups(unique, (own) => own.length, (row) => row.verdict).map(([verdict, count]) => `${count} ${verdict}`).join(", ");
  return h("section", { class: "claim", "data-claim": claim },
    h("h2", {}, `${claim}: ${rows[0].paper_says}`), h("p", { class: "faint" }, counts),
    tableOf(`Findings on ${claim}`, ["Where", "Verdict", "Measured", "Evidence", "Rows"], unique.map((row) => ({ cells: [
      titleOf(row.where), h("span", { class: row.verdict === "not tested" ? "untested" : row.verdict }, `${SIGNS[row.verdict] ?? ""} ${row.verdict}`), row.measured, row.evidence, rowsBehind(row, show)] })), () => false));
}

const taskIn = (row) => String(row.where).split(":")[0];

function titleOf(where) {
  const [name, ...part] = String(where).split(":");
  const task = scaleNow().tasks.find((each) => each.name === name);
  return [task?.title ?? name, ...part].join(":");
}

/** The rows of the tables and variants that the evidence names, and a link to the variants' curves. */
function rowsBehind(row, show) {
  const task = scaleNow().tasks.find((each) => each.name === taskIn(row));
  if (!task || row.verdict === "not tested") return NOTHING;
  const text = `${row.evidence} ${row.measured}`;
  const variants = task.variants.filter((variant) => namedIn(text, variant.name)).map((variant) => variant.name);
  const named = [...new Set([...text.matchAll(/(\w+)\.csv/g)].map((match) => match[1]))].filter((name) => scaleNow().tables[name]);
  const tables = named.length ? named : ["tradeoff"];
  const open = h("button", { class: "plain", onclick: () => { chooseTask(task.name); if (variants.length) state.variants = variants; show("budgets"); } }, "curves");
  const details = h("details", { ontoggle: (event) => {
    if (!event.target.open || event.target.children.length > 1) return;
    event.target.append(...tables.map((name) => behind(name, task, variants)));
  } }, h("summary", {}, tables.map((name) => `${name}.csv`).join(", ")));
  return h("span", {}, open, details);
}

/** Whether a text has a name as a word of its own. */
const namedIn = (text, name) => new RegExp(`(^|[^\\w.])${name.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")}($|[^\\w.]|\\.(?!\\w))`).test(text);

function behind(name, task, variants) {
  const all = scaleNow().tables[name].rows({ task: task.name });
  const own = all.filter((row) => !variants.length || variants.includes(row.variant)).filter((row) => !("metric" in row) || row.metric === task.metrics[0]);
  const rows = own.slice(0, MOST_ROWS);
  if (!rows.length) return h("p", {}, `${name}.csv has no rows of these variants.`);
  const caption = own.length > rows.length ? `${name}.csv, the first ${rows.length} of ${own.length} rows` : `${name}.csv`;
  return rowsTable(caption, name, rows);
}
