// Where in an image, and on which tokens of a text, the experts run.
const SIDE = 128; // pixels of a map

const mapsNow = () => scaleNow().maps[state.task];
const tokensNow = () => scaleNow().tokens[state.task];
const mapTasks = () => scaleNow().tasks.filter((task) => scaleNow().maps[task.name] || scaleNow().tokens[task.name]);

function mapControls(update, rebuild) {
  const tasks = mapTasks();
  if (tasks.length && !tasks.includes(taskNow())) chooseTask(tasks[0].name);
  return h("div", { class: "controls" },
    SCALES.length > 1 ? selectOf("scale", "Results", SCALES.map((scale, place) => [place, scale.name]), state.scale, (value) => { chooseScale(Number(value)); rebuild(); }) : null,
    tasks.length > 1 ? selectOf("task", "Task", tasks.map((task) => [task.name, task.title]), state.task, (value) => { chooseTask(value); rebuild(); }) : null,
    tokensNow() ? h("fieldset", {}, h("legend", {}, "Operating point"), loadSlider(update)) : null);
}

const loadText = () => `${tokensNow().symbol} = ${tokensNow().values[state.load]}`;

function loadSlider(update) {
  const { values } = tokensNow();
  state.load ??= Math.floor(values.length / 2);
  const shown = h("output", { for: "load", id: "load-text" }, loadText());
  const slider = h("input", { type: "range", id: "load", "aria-label": "Operating point", min: 0, max: values.length - 1, step: 1, "aria-valuetext": loadText(), oninput: () => {
    state.load = Number(slider.value);
    shown.textContent = loadText();
    slider.setAttribute("aria-valuetext", loadText());
    update();
  } });
  slider.value = state.load;
  return h("div", {}, slider, shown);
}

function mapContent() {
  if (mapsNow()) return mapsOf(mapsNow(), tokensNow());
  if (tokensNow()?.texts.length) return textsOf(tokensNow());
  const { patch_load, token_load } = scaleNow().notes;
  return [noteOf(patch_load ?? token_load ?? "No task of these results has load maps, of images or of texts.")];
}

/** A flat list of patches as a square grid. */
function squared(patches) {
  const side = Math.round(Math.sqrt(patches.length));
  return d3.range(side).map((row) => patches.slice(row * side, (row + 1) * side));
}

/** Images and their maps, of the chosen operating point where several were measured. */
function mapsOf(maps, tokens) {
  const all = tokens ? tokens.experts.map((images) => images.map((counts) => squared(counts.map((count) => count / tokens.num_experts)))) : [maps.loads];
  const loads = tokens ? all[state.load] : maps.loads;
  const range = d3.extent(all.flat(3));
  const figures = maps.names.slice(0, loads.length).map((name, place) => h("figure", {},
    maps.images[place] ? h("img", { src: maps.images[place], alt: name, width: SIDE, height: SIDE }) : gridOf(maps.objects[place], [0, 1], d3.interpolateGreys, "share of the object"),
    " ", gridOf(loads[place], range, d3.interpolateViridis, "executed experts"),
    h("figcaption", {}, `${name}: ${percent(mean(loads[place].flat()))} of the experts`)));
  return [
    h("h2", {}, `${taskNow().title}: executed experts per patch`),
    h("p", {}, `${tokens ? `${tokens.point}, ${loadText()}` : maps.point}. On the right the share of experts that each patch's token runs, ${tokens ? "all layers together" : "mean over layers"}, on one scale from ${percent(range[0])} (dark) to ${percent(range[1])} (bright).`),
    h("p", { class: "faint" }, maps.images.length ? "On the left the image." : "The pictures are not among these results: on the left how much of each patch the object covers, black all of it."),
    tokens ? null : h("p", { class: "faint" }, `${scaleNow().notes.token_load ?? "token_load.csv does not have this task."} So there is one operating point to see.`),
    h("div", { class: "maps", id: "maps" }, figures),
  ].filter(Boolean);
}

/** A grid of shares as squares, each with its number. */
function gridOf(grid, range, colours, what) {
  const scale = d3.scaleSequential(range, colours);
  const cells = grid.flatMap((line, row) => line.map((share, column) => ({ row, column, share })));
  const svg = Plot.plot({ axis: null, width: SIDE, height: SIDE, margin: 0, padding: 0, x: { type: "band" }, y: { type: "band" }, marks: [Plot.cell(cells, { x: "column", y: "row", fill: (cell) => scale(cell.share), title: (cell) => `row ${cell.row}, column ${cell.column}: ${percent(cell.share)} (${what})`, inset: 0 })] });
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", `${what}, from ${percent(d3.min(grid.flat()))} to ${percent(d3.max(grid.flat()))}`);
  return svg;
}

/** Texts whose tokens are shaded by the experts that they run. */
function textsOf({ point, experts, num_experts, texts }) {
  const range = d3.extent(experts.flat(2));
  const scale = d3.scaleSequential(range, d3.interpolateViridis);
  const said = (count) => `${count} of ${num_experts} experts`;
  const shownOf = (token) => token.replaceAll("\n", "↵") || "·";
  const figures = texts.map((tokens, place) => {
    const counts = experts[state.load][place];
    const shaded = tokens.map((token, position) => {
      const span = h("span", { title: said(counts[position]) }, shownOf(token));
      const ground = d3.color(scale(counts[position])).formatHex();
      span.style.background = ground;
      span.style.color = inkOn(ground);
      return span;
    });
    const lines = tokens.map((token, position) => ({ cells: [shownOf(token), String(counts[position]), percent(counts[position] / num_experts)] }));
    return h("figure", { "data-text": place }, h("p", { class: "tokens" }, shaded),
      h("figcaption", {}, `text ${place + 1}: ${percent(mean(counts) / num_experts)} of the experts`),
      numbersOf("Executed experts per token, all layers together", ["Token", "Experts", "Share"], lines));
  });
  return [
    h("h2", {}, `${taskNow().title}: executed experts per token`),
    h("p", {}, `${point}, ${loadText()}. The first tokens of test texts, shaded by the experts that they run, all layers together, on one scale from ${said(range[0])} (dark) to ${said(range[1])} (bright). Special tokens are the model's own.`),
    h("div", { id: "texts" }, figures),
  ];
}
