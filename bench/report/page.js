"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const sections = [...document.querySelectorAll(".section")];

function drawing(holder) {
  const view = data.views[holder.id];
  if (!view) return data.sections[sections.indexOf(holder)];
  return { specs: view.specs, rows: view.records.map((record) => ({ ...data.rows[record.i], ...record })) };
}

function draw(holder) {
  const { specs, rows } = drawing(holder);
  const hidden = new Set([...holder.querySelectorAll(".show:not(:checked)")].map((box) => box.value));
  const kept = (values) => values.filter((value) => !hidden.has(value.c));
  const panel = holder.closest(".panel");
  for (const place of holder.querySelectorAll(".drawing")) {
    if (place.closest(".panel") !== panel) continue; // a section's panels are drawn when they are shown
    const spec = structuredClone(specs[place.dataset.name]);
    for (const name of Object.keys(spec.datasets ?? {})) spec.datasets[name] = kept(spec.datasets[name]);
    spec.datasets = { ...spec.datasets, rows: kept(rows) };
    // ast: expressions are interpreted, so the page needs no right to evaluate text as a script
    const options = { ast: true, actions: false, renderer: "svg", config: { ...data.config, background: "transparent" } };
    vegaEmbed(place, spec, options)
      .then(() => { place.dataset.drawn = "yes"; })
      .catch((error) => { place.textContent = "This chart could not be drawn: " + error.message; });
  }
}

function panels(group) {
  return [...group.querySelectorAll(".panel")];
}

function show(panel) {
  const group = panel.closest(".group");
  for (const other of panels(group)) other.hidden = other !== panel;
  const has = JSON.parse(panel.dataset.choices);
  for (const input of group.querySelectorAll(".pickers input")) input.checked = has[input.name] === input.value;
  draw(panel);
}

// The view that answers the question just changed and most of the others; the other pickers then follow it.
function pick(changed) {
  const group = changed.closest(".group");
  const wanted = Object.fromEntries([...group.querySelectorAll(".pickers :checked")].map((input) => [input.name, input.value]));
  const score = (panel) => {
    const has = JSON.parse(panel.dataset.choices);
    return Object.keys(wanted).reduce((sum, key) => sum + (has[key] === wanted[key]) * (key === changed.name ? 100 : 1), 0);
  };
  show(panels(group).reduce((a, b) => (score(b) > score(a) ? b : a)));
}

// What a link names may stand in a view or a fold that is not shown.
function reveal() {
  const place = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  const panel = place?.closest(".panel");
  if (panel?.hidden) show(panel);
  for (let fold = place?.closest("details"); fold; fold = fold.parentElement.closest("details")) fold.open = true;
  place?.scrollIntoView();
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

document.addEventListener("change", (event) => {
  if (event.target.matches(".show")) draw(event.target.closest(".panel"));
  if (event.target.matches(".pickers input")) pick(event.target);
});
document.addEventListener("click", (event) => event.target.matches(".sortable button") && sort(event.target));
document.addEventListener("input", (event) => event.target.matches("[data-filters]") && filter(event.target));
addEventListener("hashchange", reveal);
for (const group of document.querySelectorAll(".group")) if (panels(group).length) show(panels(group)[0]);
sections.forEach(draw);
if (location.hash) reveal();
