"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const panels = [...document.querySelectorAll(".panel")];
const sections = [...document.querySelectorAll(".section")];
const form = document.querySelector(".pickers");

function drawing(holder) {
  const at = panels.indexOf(holder);
  return at < 0 ? data.sections[sections.indexOf(holder)] : data.panels[at];
}

function draw(panel) {
  const { specs, rows } = drawing(panel);
  const hidden = new Set([...panel.querySelectorAll(".show:not(:checked)")].map((box) => box.value));
  const kept = (values) => values.filter((value) => !hidden.has(value.c));
  for (const place of panel.querySelectorAll(".drawing")) {
    const spec = structuredClone(specs[place.dataset.name]);
    for (const name of Object.keys(spec.datasets ?? {})) spec.datasets[name] = kept(spec.datasets[name]);
    spec.datasets = { ...spec.datasets, rows: kept(rows) };
    // ast: expressions are interpreted, so the page needs no right to evaluate text as a script
    const options = { ast: true, actions: false, renderer: "svg", config: { ...data.config, background: "transparent" } };
    vegaEmbed(place, spec, options).catch((error) => { place.textContent = "This chart could not be drawn: " + error.message; });
  }
}

function show(panel) {
  for (const other of panels) other.hidden = other !== panel;
  if (panel) draw(panel);
}

function question(fieldset) {
  return fieldset.querySelector("legend").textContent;
}

function chosen() {
  return Object.fromEntries([...form.querySelectorAll("fieldset")].map((set) => [question(set), set.querySelector(":checked")?.value]));
}

// The panel that answers the question just changed and most of the others; the other pickers then follow it.
function pick(changed) {
  const wanted = chosen();
  const score = (panel) => {
    const has = JSON.parse(panel.dataset.choices);
    return Object.keys(wanted).reduce((sum, key) => sum + (has[key] === wanted[key]) * (key === changed ? 100 : 1), 0);
  };
  const panel = panels.reduce((a, b) => (score(b) > score(a) ? b : a));
  const has = JSON.parse(panel.dataset.choices);
  for (const input of form.querySelectorAll("input")) {
    const asked = question(input.closest("fieldset"));
    input.checked = has[asked] === input.value;
  }
  show(panel);
}

function sort(button) {
  const heading = button.closest("th");
  const body = heading.closest("table").tBodies[0];
  const column = heading.cellIndex;
  const up = heading.getAttribute("aria-sort") !== "ascending";
  for (const other of heading.parentNode.children) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", up ? "ascending" : "descending");
  const key = (row) => row.cells[column].dataset.v ?? row.cells[column].textContent;
  const number = (text) => (text === "" ? NaN : Number(text));
  const order = (a, b) => {
    if ((a === "") !== (b === "")) return a === "" ? 1 : -1; // empty cells last, either way
    const [x, y] = [number(a), number(b)];
    const ascending = Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b, undefined, { numeric: true }) : x - y;
    return up ? ascending : -ascending;
  };
  body.append(...[...body.rows].map((row) => [key(row), row]).sort((a, b) => order(a[0], b[0])).map((pair) => pair[1]));
}

function filter(input) {
  const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
  for (const row of document.getElementById(input.dataset.filters).tBodies[0].rows) {
    const text = [...row.cells].map((cell) => cell.textContent).join(" ").toLowerCase();
    row.hidden = !words.every((word) => text.includes(word));
  }
}

form?.addEventListener("change", (event) => pick(question(event.target.closest("fieldset"))));
document.addEventListener("change", (event) => event.target.matches(".show") && draw(event.target.closest(".panel")));
document.addEventListener("click", (event) => event.target.matches(".sortable button") && sort(event.target));
document.addEventListener("input", (event) => event.target.matches("[data-filters]") && filter(event.target));
show(panels[0]);
sections.forEach(draw);
