// Where in an image the experts run.
const SIDE = 128; // pixels of a map

const mapsNow = () => scaleNow().maps[state.task];
const mapTasks = () => scaleNow().tasks.filter((task) => scaleNow().maps[task.name]);

function mapControls(update, rebuild) {
  const tasks = mapTasks();
  if (tasks.length && !mapsNow()) chooseTask(tasks[0].name);
  return h("div", { class: "controls" },
    SCALES.length > 1 ? selectOf("scale", "Results", SCALES.map((scale, place) => [place, scale.name]), state.scale, (value) => { chooseScale(Number(value)); rebuild(); }) : null,
    tasks.length > 1 ? selectOf("task", "Task", tasks.map((task) => [task.name, task.title]), state.task, (value) => { chooseTask(value); rebuild(); }) : null);
}

function mapContent() {
  const maps = mapsNow();
  if (!maps) return [noteOf(scaleNow().notes.patch_load ?? "No task of these results has load maps: they are of images.")];
  const range = d3.extent(maps.loads.flat(2));
  const figures = maps.loads.map((load, place) => h("figure", {},
    maps.images[place] ? h("img", { src: maps.images[place], alt: maps.names[place], width: SIDE, height: SIDE }) : gridOf(maps.objects[place], [0, 1], d3.interpolateGreys, "share of the object"),
    " ", gridOf(load, range, d3.interpolateViridis, "executed experts"),
    h("figcaption", {}, `${maps.names[place]}: ${percent(mean(load.flat()))} of the experts`)));
  return [
    h("h2", {}, `${taskNow().title}: executed experts per patch`),
    h("p", {}, `${maps.point}. On the right the share of experts that each patch's token runs, mean over layers, on one scale from ${percent(range[0])} (dark) to ${percent(range[1])} (bright).`),
    h("p", { class: "faint" }, maps.images.length ? "On the left the image." : "The pictures are not among these results: on the left how much of each patch the object covers, black all of it."),
    h("p", { class: "faint" }, "Maps of one operating point are published, so there is none to choose. No table says which experts the tokens of a text run."),
    h("div", { class: "maps", id: "maps" }, figures),
  ];
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
