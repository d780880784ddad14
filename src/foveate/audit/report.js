"use strict";
/* Draws every chart in the page's theme and again when the theme changes. Charts come in light
   colours; `dark` names the partner of each. */
(() => {
  const { charts, dark } = JSON.parse(document.getElementById("charts").textContent);
  const root = document.documentElement;
  const button = document.getElementById("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const paper = matchMedia("print");
  const hidden = new Set();
  let chosen = null;

  const theme = () => paper.matches ? "light" : chosen || (system.matches ? "dark" : "light");

  const hex = (part) => Number(part).toString(16).padStart(2, "0");
  function partner(text) {
    if (dark[text]) return dark[text];
    const found = /^rgba\((\d+),(\d+),(\d+),([\d.]+)\)$/.exec(text);
    const other = found && dark["#" + hex(found[1]) + hex(found[2]) + hex(found[3])];
    if (!other) return text;
    const [red, green, blue] = [1, 3, 5].map((i) => parseInt(other.slice(i, i + 2), 16));
    return `rgba(${red},${green},${blue},${found[4]})`;
  }
  function themed(value) {
    if (Array.isArray(value)) return value.map(themed);
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, themed(v)]));
    }
    return typeof value === "string" && root.dataset.theme === "dark" ? partner(value) : value;
  }

  async function draw() {
    root.dataset.theme = theme();
    button.textContent = root.dataset.theme === "dark" ? "Light" : "Dark";
    button.setAttribute("aria-label", `Show the page in ${button.textContent.toLowerCase()} colours`);
    for (const { id, data, layout } of charts) {
      const traces = themed(data);
      for (const trace of traces) {
        if (trace.meta && hidden.has(trace.meta.arm)) trace.visible = false;
      }
      await Plotly.react(id, traces, themed(layout), { displayModeBar: false, responsive: true });
    }
    root.dataset.drawn = root.dataset.theme;
    root.dataset.hidden = [...hidden].sort().join(" ");
  }

  // One drawing at a time, and always a last one after the last change.
  let running = null, again = false;
  function redraw() {
    if (running) { again = true; return; }
    running = draw().finally(() => {
      running = null;
      if (again) { again = false; redraw(); }
    });
  }

  button.addEventListener("click", () => {
    chosen = root.dataset.theme === "dark" ? "light" : "dark";
    redraw();
  });
  for (const query of [system, paper]) query.addEventListener("change", redraw);
  for (const arm of document.querySelectorAll(".key button")) {
    arm.addEventListener("click", () => {
      const number = Number(arm.dataset.arm);
      if (!hidden.delete(number)) hidden.add(number);
      arm.setAttribute("aria-pressed", String(!hidden.has(number)));
      redraw();
    });
  }
  redraw();
})();
