// The page: its views, and what follows a change.
const VIEWS = {
  budgets: { title: "Budgets", controls: budgetControls, content: budgetContent, needs: () => scaleNow()?.tasks.length },
  latency: { title: "Latency", controls: latencyControls, content: latencyContent, needs: () => TIMINGS.length },
  maps: { title: "Load maps", controls: mapControls, content: mapContent, needs: () => scaleNow()?.tasks.length },
  claims: { title: "Claims", controls: claimControls, content: claimContent, needs: () => SCALES.length },
};
const MISSING = { budgets: "There is no tradeoff.csv among these results, so there is nothing to explore.", latency: "There are no tables of benchmarks among these results: snakemake benchmarks makes them.", maps: "There are no load maps among these results.", claims: "There is no claims.csv among these results." };

const main = document.getElementById("content");

function show(view) {
  state.view = view;
  for (const tab of document.querySelectorAll("#views button")) {
    tab.setAttribute("aria-selected", String(tab.value === view));
    tab.tabIndex = tab.value === view ? 0 : -1;
  }
  rebuild();
}

/** Controls and content anew; the focus stays where it was. */
function rebuild() {
  const focus = document.activeElement?.id;
  const view = VIEWS[state.view];
  if (!view.needs()) {
    main.replaceChildren(noteOf(scaleNow()?.notes.tradeoff && state.view === "budgets" ? scaleNow().notes.tradeoff : MISSING[state.view]));
    return;
  }
  const controls = view.controls(update, rebuild);
  const content = h("div", { id: "shown", "aria-live": "off" });
  main.replaceChildren(controls.children.length ? h("div", { class: "board" }, h("form", { onsubmit: (event) => event.preventDefault(), "aria-label": "Choose" }, controls), content) : content);
  update();
  if (focus) document.getElementById(focus)?.focus({ preventScroll: true });
  notes();
}

function update() {
  const content = document.getElementById("shown");
  if (!content) return;
  const focus = document.activeElement?.id;
  content.replaceChildren(...VIEWS[state.view].content(Math.max(280, content.clientWidth), update, show));
  if (focus && document.activeElement?.id !== focus) document.getElementById(focus)?.focus({ preventScroll: true });
}

/** What is missing, below every view. */
function notes() {
  const found = Object.values(scaleNow()?.notes ?? {});
  document.getElementById("notes").replaceChildren(...(found.length ? [h("h2", {}, "What these results lack"), h("ul", {}, found.map((text) => h("li", {}, text)))] : []));
}

function start() {
  document.getElementById("about").textContent = `${DATA.title[0].toUpperCase()}${DATA.title.slice(1)}. Dense Transformers converted to dynamic-k mixtures of experts: what is kept, and what it costs. FLOPs per sample, a multiply–add counts as 2; quality relative to the better dense model, on test samples.`;
  const names = Object.keys(VIEWS);
  const tabs = names.map((name) => h("button", { type: "button", role: "tab", id: `view-${name}`, value: name, "aria-controls": "content", onclick: () => show(name) }, VIEWS[name].title));
  document.getElementById("views").append(...tabs);
  document.getElementById("views").addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const place = (names.indexOf(state.view) + step + names.length) % names.length;
    show(names[place]);
    tabs[place].focus();
  });
  if (SCALES.length) chooseScale(0);
  const wanted = names.find((name) => `#${name}` === location.hash);
  show(wanted ?? (VIEWS.budgets.needs() ? "budgets" : "latency"));
  let width = window.innerWidth;
  window.addEventListener("resize", () => { if (window.innerWidth !== width) { width = window.innerWidth; update(); } });
  DARK.addEventListener("change", rebuild);
  window.addEventListener("beforeprint", () => { printing = true; rebuild(); });
  window.addEventListener("afterprint", () => { printing = false; rebuild(); });
}

start();
