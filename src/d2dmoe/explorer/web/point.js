// All that is known of one operating point: its rows, command and configuration.
function pointDetails(methods) {
  const wanted = state.point;
  if (!wanted) return h("p", { id: "point", class: "faint" }, "Choose a point of the chart, or a method of the table, for its rows, its command and its configuration.");
  const points = methods.flatMap((method) => method.points);
  const point = points.find(({ variant, knob, value }) => variant.name === wanted.variant && knob === wanted.knob && value === wanted.value);
  if (!point) return h("p", { id: "point", class: "faint" }, "The chosen point is not among the methods and seeds shown.");
  const { variant } = point;
  return h("section", { id: "point", "aria-label": "The chosen operating point" },
    h("h2", {}, `${variant.label}${point.value == null ? "" : `, ${valueOf(point)}`}`),
    rowsTable(`Rows of tradeoff.csv${variant.suite === "main" ? "" : ` (${variant.suite})`}`, "tradeoff", point.rows),
    commandOf(variant),
    configurationOf(variant));
}

/** Rows of a table as they are in the file, without what the page added. */
function rowsTable(caption, table, rows) {
  const names = scaleNow().tables[table].names.filter((name) => name !== "suite" && rows.some((row) => row[name] != null));
  return tableOf(caption, names, rows.map((row) => ({ cells: names.map((name) => String(row[name] ?? "")) })), (column) => typeof rows[0]?.[names[column]] === "number");
}

function commandOf(variant) {
  const { command, folder } = scaleNow();
  const targets = state.seeds.flatMap((seed) => variant.targets[seed] ?? []);
  if (!command || !targets.length) return h("div", {}, h("h3", {}, "Command"), h("p", {}, `The command is not known; what lies beside ${folder} may say it.`));
  return h("div", {}, h("h3", {}, "Command"), h("p", {}, "It makes the tables of all its operating points, and all that they need:"), h("pre", {}, `${command} ${targets.join(" ")}`));
}

function configurationOf(variant) {
  if (!variant.stages.length) return h("div", {}, h("h3", {}, "Configuration"), h("p", {}, scaleNow().notes.config ?? "The configuration does not have this variant."));
  const stages = variant.stages.map((place) => scaleNow().stages[place]);
  return h("div", {}, h("h3", {}, "Configuration"), h("p", {}, `Its stages: ${stages.map(([name]) => name).join(" → ")}.`),
    stages.map(([name, options]) => h("details", {}, h("summary", {}, name), h("pre", {}, options))));
}
