// Elements, tables and numbers.
const DATA = JSON.parse(document.getElementById("data").textContent);

/** An element; attributes that begin with "on" are listeners. */
function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child != null));
  return element;
}

/** Of each row of a packed column, which of its different values it has. */
function placesOf({ at, runs }) {
  return at ?? d3.range(0, runs.length, 2).flatMap((i) => Array(runs[i + 1]).fill(runs[i]));
}

/** A table of the page: columns, by name, and the places of rows by what they are of. */
class Table {
  constructor(packed) {
    this.columns = {};
    for (const [name, column] of Object.entries(packed)) {
      this.columns[name] = Array.isArray(column) ? column : placesOf(column).map((place) => column.of[place]);
    }
    this.names = Object.keys(packed);
    this.length = this.names.length ? this.columns[this.names[0]].length : 0;
    this.found = new Map();
  }

  /** Places of the rows that have these values. */
  where(values) {
    const key = JSON.stringify(values);
    if (!this.found.has(key)) {
      const wanted = Object.entries(values).map(([name, value]) => [this.columns[name], value]);
      const places = d3.range(this.length).filter((i) => wanted.every(([column, value]) => column[i] === value));
      this.found.set(key, places);
    }
    return this.found.get(key);
  }

  row(place) {
    return Object.fromEntries(this.names.map((name) => [name, this.columns[name][place]]));
  }

  rows(values) {
    return this.where(values).map((place) => this.row(place));
  }
}

const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

/** Sample standard deviation; null of one value. */
function deviation(values) {
  if (values.length < 2) return null;
  const middle = mean(values);
  return Math.sqrt(values.reduce((sum, value) => sum + (value - middle) ** 2, 0) / (values.length - 1));
}

const UNITS = [["TFLOPs", 1e12], ["GFLOPs", 1e9], ["MFLOPs", 1e6], ["kFLOPs", 1e3], ["FLOPs", 1]];
const NOTHING = "–";
const fixed = (value, digits) => (value == null || !Number.isFinite(value) ? NOTHING : value.toFixed(digits));
const percent = (share, digits = 1) => (share == null || !Number.isFinite(share) ? NOTHING : `${(100 * share).toFixed(digits)} %`);
const grouped = (count) => Math.round(count).toLocaleString("en-US");

function flops(count) {
  if (count == null) return NOTHING;
  const [unit, size] = UNITS.find(([, least]) => count >= least) ?? UNITS.at(-1);
  return `${(count / size).toFixed(2)} ${unit}`;
}

/** A value with its deviation over seeds, in the same digits. */
function spread(value, error, show) {
  return error == null ? show(value) : `${show(value)} ± ${show(error).replace(" %", "")}`;
}

/** A table; cells are texts or elements, `numbers` says which columns are right-aligned. */
function tableOf(caption, heads, lines, numbers = () => true) {
  const kind = (column) => (column > 0 && numbers(column) ? "number" : null);
  return h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": caption },
    h("table", {},
      h("caption", {}, caption),
      h("thead", {}, h("tr", {}, heads.map((head, column) => h("th", { scope: "col", class: kind(column) }, head)))),
      h("tbody", {}, lines.map(({ cells, ...attributes }) =>
        h("tr", attributes, cells.map((cell, column) => h("td", { class: kind(column) }, cell ?? NOTHING)))))));
}

/** A chart's numbers, for readers and screens that show no chart. */
const numbersOf = (caption, heads, lines) => h("details", {}, h("summary", {}, "The numbers"), tableOf(caption, heads, lines));

const noteOf = (text) => h("p", { class: "note" }, text);
