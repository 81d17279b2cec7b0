// How variants look, as in the figures, and what all charts share.

/** A regular polygon as d3's symbols are; `turn` in degrees, from a corner on top. */
function polygon(sides, turn) {
  return {
    draw(context, size) {
      const radius = Math.sqrt((2 * size) / (sides * Math.sin((2 * Math.PI) / sides)));
      d3.range(sides).forEach((corner) => {
        const angle = ((turn - 90) * Math.PI) / 180 + (2 * Math.PI * corner) / sides;
        const [x, y] = [radius * Math.cos(angle), radius * Math.sin(angle)];
        if (corner) context.lineTo(x, y);
        else context.moveTo(x, y);
      });
      context.closePath();
    },
  };
}

/** d3's cross, turned by 45 degrees. */
const diagonal = {
  draw(context, size) {
    const arm = Math.sqrt(size / 5) / 2;
    const corners = [[-3, -1], [-1, -1], [-1, -3], [1, -3], [1, -1], [3, -1], [3, 1], [1, 1], [1, 3], [-1, 3], [-1, 1], [-3, 1]];
    corners.forEach(([x, y], corner) => {
      const place = [((x - y) * arm) / Math.SQRT2, ((x + y) * arm) / Math.SQRT2];
      if (corner) context.lineTo(...place);
      else context.moveTo(...place);
    });
    context.closePath();
  },
};

const SYMBOLS = { // by matplotlib's names of markers
  o: d3.symbolCircle, s: polygon(4, 45), D: polygon(4, 0), p: polygon(5, 0), P: d3.symbolCross, X: diagonal,
  "*": d3.symbolStar, "^": polygon(3, 0), ">": polygon(3, 90), v: polygon(3, 180), "<": polygon(3, 270),
};
const DASH = 2; // pixels of a line's width, of which the figures' dashes are multiples
const DARK = window.matchMedia("(prefers-color-scheme: dark)");
const CONTRAST = 4.5; // of lines on a dark page, at least
let printing = false;

const isDark = () => DARK.matches && !printing;

function luminance(colour) {
  const { r, g, b } = d3.rgb(colour);
  const linear = [r, g, b].map((x) => (x / 255 <= 0.04045 ? x / 255 / 12.92 : ((x / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
}

/** WCAG's contrast of two colours. */
function contrast(one, other) {
  const [low, high] = [luminance(one), luminance(other)].sort(d3.ascending);
  return (high + 0.05) / (low + 0.05);
}

/** Of black and white, what is easier to read on a colour. */
const inkOn = (colour) => (contrast(colour, "#000") > contrast(colour, "#fff") ? "#000" : "#fff");

const paper = () => getComputedStyle(document.documentElement).getPropertyValue("--paper").trim();

/** A look's colour: the figures' own, on a dark page as much lighter as it needs. */
function colourOf(look) {
  if (!look.colour) return "currentColor";
  if (!isDark()) return look.colour;
  const lighter = d3.range(0, 1, 0.05).map(d3.interpolateRgb(look.colour, "#fff"));
  return lighter.find((colour) => contrast(colour, paper()) >= CONTRAST);
}

const dashesOf = (look) => look.dashes.map((length) => length * DASH).join(" ") || null;

/** How a look's dots are drawn; an outline keeps pale colours apart from the page. */
function dotsOf(look, radius = 5) {
  const colour = colourOf(look);
  const signs = { symbol: SYMBOLS[look.marker], r: radius };
  if (look.hollow) return { ...signs, fill: "var(--paper)", stroke: colour, strokeWidth: 2 };
  return { ...signs, fill: colour, stroke: "currentColor", strokeWidth: 0.6 };
}

/** The sign of a look in a list: its line, and its marker where it has one. */
function swatch(look) {
  const line = Plot.line([[2, 9], [42, 9]], { stroke: colourOf(look), strokeWidth: 2, strokeDasharray: dashesOf(look) });
  const dot = look.marker ? Plot.dot([[22, 9]], dotsOf(look)) : null;
  const size = { width: 44, height: 18, margin: 0, x: { domain: [0, 44], range: [0, 44] }, y: { domain: [0, 18], range: [0, 18] } };
  const svg = Plot.plot({ ...size, axis: null, marks: [line, dot] });
  svg.setAttribute("class", "swatch");
  svg.setAttribute("aria-hidden", "true");
  return svg;
}

/** A figure: a chart that fits its place, with a caption and, below, its numbers. */
function figureOf(title, description, options, below = null) {
  const figure = h("figure", {}, h("h3", {}, title));
  const svg = Plot.plot({
    width: options.width, height: 300, marginLeft: 56, marginBottom: 42, marginRight: 16,
    style: { background: "none", fontSize: "12px", color: "currentColor" }, ...options,
  });
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", `${title}. ${description}`);
  figure.append(svg, h("figcaption", {}, description));
  if (below) figure.append(below);
  return figure;
}

/** Dots that call `choose` with their datum when they are clicked. */
function clickable(data, options, choose) {
  return Plot.dot(data, {
    ...options,
    render(index, scales, values, dimensions, context, next) {
      const group = next(index, scales, values, dimensions, context);
      [...group.children].forEach((dot, place) => {
        dot.style.cursor = "pointer";
        dot.addEventListener("click", () => choose(data[index[place]]));
      });
      return group;
    },
  });
}
