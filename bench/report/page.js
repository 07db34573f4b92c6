// The state is in the address: what is picked, the open tab, what the scaling chart shows and which names are in colour.
const $ = (id) => document.getElementById(id);
const { rows, questions, looks } = embedded;
const PICKED = ["layer", "tokens", "mode", "dtype", "held", "machine"];
const QUANTITIES = { speedup: ["speed-up over dense", "×"], time: ["time of a call", "s"], flops: ["FLOPs of a call", ""],
  executed: ["FLOPs executed", ""], params: ["parameters", ""], bytes: ["bytes moved at least", "B"] };
const LAPTOP = ["vs nn.Linear", "FLOPs %", "memory %"]; // columns that a phone has no room for
const FIRST = 5; // structures of a ranking that are shown before a reader asks for all
const GREY = { colour: "#8a8a8a", marker: "M-1 0A1 1 0 1 1 1 0A1 1 0 1 1-1 0Z", dash: [1, 0], width: 1, hollow: false };
const state = { tab: "", y: "speedup", x: "in", of: "held", add: [], drop: [], all: false };

// -- words

const digits = (value) => {
  const [mantissa, exponent] = value.toExponential(2).split("e").map(Number);
  return (mantissa * 10 ** exponent).toFixed(Math.max(0, Math.min(2 - exponent, 9)));
};
const share = (value) => Number((value * 100).toPrecision(3)) + " %";
const spread = ([median, low, high]) => `${digits(median)}× (${digits(low)} to ${digits(high)})`;
const signed = (value) => (value > 0 ? "+" : value < 0 ? "\u2212" : "") + Math.abs(value * 100).toFixed(1);
const layer = (slug) => { const [i, o] = slug.split("x"); return i === o ? `${i} × ${o}` : `${i} → ${o}`; };
const tokens = (count) => count + (count === "1" ? " token" : " tokens");
function prefixed(value, unit) {
  const [step, prefix] = [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"], [1, ""], [1e-3, "m"], [1e-6, "µ"], [1e-9, "n"]]
    .find(([step]) => value >= step * 0.9995) ?? [1e-9, "n"];
  return `${digits(value / step)} ${prefix}${unit}`;
}

// -- elements: text from a file is only ever a text node or an attribute

function el(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) if (value !== undefined) made.setAttribute(key, value);
  made.append(...children.filter((child) => child !== undefined));
  return made;
}
function swatch(look) {
  const holder = el("span", { class: "swatch" });
  holder.innerHTML = "<svg width='14' height='14' viewBox='0 0 14 14' aria-hidden='true'><path transform='translate(7 7) scale(4.5)' stroke-width='.35'/></svg>";
  const path = holder.querySelector("path");
  path.setAttribute("d", look.marker);
  path.setAttribute("stroke", look.colour);
  path.setAttribute("fill", look.hollow ? "none" : look.colour);
  return holder;
}
function table(place, headings, lines, caption) {
  place.replaceChildren();
  if (caption) place.append(el("caption", {}, el("span", {}, caption)));
  const head = (name) => el("th", { scope: "col", class: LAPTOP.includes(name) ? "laptop" : undefined }, place.matches(".sortable") ? el("button", { type: "button" }, name) : name);
  place.append(el("thead", {}, el("tr", {}, ...headings.map(head))), el("tbody", {}, ...lines));
  place.closest(".scroll").hidden = !lines.length;
}

// -- the question that is picked

function chosen() {
  const score = (q) => PICKED.reduce((sum, key) => sum + (q.pick[key] === state[key]) * (key === state.changed ? 100 : 1), 0);
  return questions.reduce((a, b) => (score(b) > score(a) ? b : a));
}
const alike = (q, free) => questions.filter((other) => PICKED.every((key) => free.includes(key) || other.pick[key] === q.pick[key]));
const every = (q) => [...q.ranking, ...q.below];
const size = (slug) => { const [i, o] = slug.split("x").map(Number); return [i * o, i]; };

function fill(q) {
  const number = (a, b) => Number.parseFloat(a) - Number.parseFloat(b);
  const order = { tokens: number, layer: (a, b) => size(a)[0] - size(b)[0] || size(a)[1] - size(b)[1], held: (a, b) => number(b, a) };
  for (const key of PICKED) {
    const answers = [...new Set(questions.map((one) => one.pick[key]))];
    if (order[key]) answers.sort(order[key]);
    const text = (answer) => (key === "layer" ? layer(answer) : answer);
    const select = $("picker").elements[key];
    select.replaceChildren(...answers.map((answer) => el("option", { value: answer }, text(answer))));
    select.value = q.pick[key];
    select.disabled = answers.length < 2;
    state[key] = q.pick[key];
  }
}

// -- the answer: a ranking with dots, bars from the lower to the upper quartile, and dense's line at 1

function answer(q) {
  $("sentence").textContent = q.sentence;
  const structures = q.ranking.filter((one) => one.kind === "structure");
  const first = new Set([...structures.slice(0, FIRST), structures.find((one) => one.i === q.best), structures.find((one) => rows[one.i].name.startsWith("dyad"))]);
  const kept = q.ranking.filter((one) => state.all || one.kind !== "structure" || first.has(one));
  const below = state.all ? q.below : [];
  const spreads = [...kept, ...below].map((one) => rows[one.i].speedup ?? [1, 1, 1]);
  const low = Math.log(Math.min(0.9, ...spreads.map((s) => s[1]))), high = Math.log(Math.max(1.1, ...spreads.map((s) => s[2])));
  const at = (value) => `${4 + (92 * (Math.log(value) - low)) / (high - low)}%`;
  const has = (key) => every(q).some((one) => one[key]);
  const columns = [["rank", (one) => (one.rank ? one.rank + (one.tied ? "=" : "") : "")], ["structure"], [""],
    ["speed-up", (one) => one.speed], ...(has("linear") ? [["vs nn.Linear", (one) => one.linear ?? ""]] : []),
    ["FLOPs %", (one) => share(rows[one.i].shares[2]).slice(0, -2)], ["memory %", (one) => (one.memory ? share(one.memory).slice(0, -2) : "")],
    ...(has("loss") ? [["loss %", (one) => one.loss && (one.kind === "dense" ? "0" : one.loss.verdict === "tie" ? "tie" : signed(one.loss.difference)),
      (one) => one.loss && `${signed(one.loss.low)} to ${signed(one.loss.high)} %, ${one.loss.task}${one.loss.idle ? "; no less than without layers" : ""}`]] : []),
    ...(has("agrees") ? [["agrees", (one) => one.agrees && one.agrees.cosine.toFixed(2), () => "mean cosine of a converted encoder's embeddings"]] : []),
    ...(every(q).some((one) => rows[one.i].mixes !== undefined) ? [["mixes", (one) => rows[one.i].mixes && String(rows[one.i].mixes) || (rows[one.i].mixes === 0 ? "never" : "\u2013"),
      () => "layers until every output depends on every input"]] : []),
    ["", (one) => [...(one.doubts ?? []), ...(one.notes ?? []).filter((note) => !/^(runs|loses) /.test(note))].join("; ")]];
  const line = (one) => {
    const row = rows[one.i], look = looks[row.look], [median, q1, q3] = row.speedup ?? [1, 1, 1];
    const dots = el("td", { class: "dots", style: `--one: ${at(1)}` },
      el("i", { style: `left: ${at(q1)}; right: calc(100% - ${at(q3)}); background: ${look.colour}` }),
      el("b", { style: `left: ${at(median)}` }, swatch(look)));
    const cells = columns.map(([heading, text, title]) => text && el("td", { title: title?.(one), class: LAPTOP.includes(heading) ? "laptop" : undefined }, text(one) ?? "\u2013"));
    return el("tr", { class: `${one.kind}${one.rank ? "" : " doubted"}`, title: Object.values(told(one)).join("\n"), "data-name": row.name },
      cells[0], el("th", { scope: "row" }, swatch(look), one.label), dots, ...cells.slice(3));
  };
  table($("ranking"), columns.map(([heading]) => heading), [...kept, ...below].map(line));
  const hidden = every(q).length - kept.length;
  const button = el("button", { type: "button" }, state.all ? "show fewer" : `show all ${every(q).length}`);
  button.addEventListener("click", () => change({ all: !state.all }));
  const refused = Object.entries(q.refused).map(([name, reason]) => `${name}: ${reason}`);
  $("ranking-note").replaceChildren(...(hidden || state.all ? [button] : []),
    ...(q.below.length && !state.all ? [` ${q.below.length} not ranked: ${[...new Set(q.below.flatMap((one) => one.doubts))].join(", ")}.`] : []),
    ...(refused.length ? [el("span", { title: refused.join("\n") }, ` Refused here: ${Object.keys(q.refused).join(", ")}.`)] : []));
}
function told(one) {
  const row = rows[one.i];
  return { title: one.label, layer: `${layer(row.layer)}, ${tokens(row.tokens)}, ${row.mode}`,
    "speed-up": `${row.speedup ? spread(row.speedup) : "the baseline"}; ${prefixed(row.time[0], "s")}, ${row.backend}`,
    "of dense": `${share(row.shares[0])} of parameters, ${share(row.shares[2])} of FLOPs${row.options ? "; " + row.options : ""}` };
}

// -- charts

const drawn = new Map(); // place -> what draws it, for when the width changes
function show(place, chart, clicked) {
  const make = () => draw(place, { guides: [], height: 340, beside: false, ...chart }, clicked);
  delete place.dataset.drawn;
  drawn.set(place, make);
  if (place.checkVisibility()) make();
}
const across = (title, unit, more = {}) => ({ title, unit, log: true, ...more });
const flat = (points, color = "currentColor") => ({ points, color, strokeDash: [1, 0], strokeWidth: 1.6 });
const single = (one, point, named) => ({ label: one.label, look: looks[rows[one.i].look], line: false, named, faint: false, points: [{ told: told(one), ...point }] });

function quality(q) {
  const has = every(q).filter((one) => one.loss && one.kind !== "dense" && rows[one.i].speedup && (one.kind === "structure" || rows[one.i].speedup[1] > 1)); // slower rivals are in the ranking
  $("quality").hidden = !has.length;
  const missing = embedded.missing.length ? `Not measured: run ${embedded.missing.join(" and ")}, and give the file to report.` : "No loss was measured at this share.";
  $("no-quality").textContent = has.length ? `Held-out loss beside dense's, ${has[0].loss.task}.` : missing;
  if (!has.length) return;
  const series = has.map((one) => {
    const [median, low, high] = rows[one.i].speedup;
    return single(one, { x: 1 + one.loss.difference, left: 1 + one.loss.low, right: 1 + one.loss.high, y: median, low, high }, true);
  });
  const ends = has.flatMap((one) => [rows[one.i].speedup[1], rows[one.i].speedup[2]]);
  show($("quality"), { series, beside: true, x: across("loss over dense's: left is better", "+%"), y: across("speed-up over dense", "×"),
    guides: [flat([[1, Math.min(...ends)], [1, Math.max(...ends)]])] });
}

// in_features to out_features of the layers that a curve over the width runs through: as picked where there are several, else square
function shaped(q) {
  const [wide, tall] = q.pick.layer.split("x").map(Number);
  const several = new Set(alike(q, ["layer"]).map((one) => one.pick.layer).filter((slug) => { const [i, o] = slug.split("x"); return o * wide === i * tall; }));
  return several.size > 1 ? [wide, tall] : [1, 1];
}
function scaling(q) {
  const own = state.of === "own", over = state.x, lines = new Map();
  const [wide, tall] = shaped(q);
  const put = (label, row, look, one) => {
    const value = state.y === "speedup" ? row.speedup ?? [1, 1, 1] : [row[state.y]].flat();
    if (!lines.has(label)) lines.set(label, { label, look, row, points: [] });
    lines.get(label).points.push({ x: Number(row[over]), y: value[0], low: value[1] ?? null, high: value[2] ?? null, told: told(one) });
  };
  const same = (row) => ["mode", "dtype", "machine", over === "in" ? "tokens" : "layer"].every((key) => row[key] === q.pick[key]) && (over !== "in" || row.out * wide === row.in * tall);
  if (own) {
    rows.forEach((row, i) => same(row) && !row.budget && (!row.control || row.rival) && put(row.series, row, looks[row.look], { i, label: row.series }));
  } else {
    for (const other of alike(q, [over === "in" ? "layer" : "tokens"])) for (const one of every(other)) if (same(rows[one.i])) put(one.label, rows[one.i], looks[rows[one.i].look], one);
  }
  const all = [...lines.values()];
  all.forEach((line) => line.points.sort((a, b) => a.x - b.x));
  const ranked = every(q).map((one) => rows[one.i].name);
  const usual = [q.best !== null && rows[q.best].name, ranked.find((name) => name.startsWith("dyad")), ...ranked.filter((name) => name.startsWith("dense"))];
  const coloured = ({ label, row }) => state.add.includes(label) || (!state.drop.includes(label) && (row.own || usual.includes(row.name)));
  const toggle = (line) => {
    const without = (names) => names.filter((name) => name !== line.label);
    change(coloured(line) ? { add: without(state.add), drop: [...state.drop, line.label] } : { add: [...state.add, line.label], drop: without(state.drop) });
  };
  const grey = all.filter((line) => !coloured(line)), colours = all.filter(coloured), ordered = [...grey, ...colours];
  const series = ordered.map((line) => ({ ...line, line: true, named: coloured(line), faint: !coloured(line), look: coloured(line) ? line.look : { ...GREY, marker: line.look.marker } }));
  $("names").replaceChildren(...all.map((line) => {
    const button = el("button", { type: "button", "aria-pressed": coloured(line) }, swatch(line.look), line.label);
    button.addEventListener("click", () => toggle(line));
    return button;
  }));
  const xs = [...new Set(all.flatMap((line) => line.points.map((p) => p.x)))].sort((a, b) => a - b);
  const [title, unit] = QUANTITIES[state.y];
  const ratio = wide === tall ? "square layers" : `layers as oblong as ${layer(q.pick.layer)}`;
  const fixed = over === "in" ? `${ratio}, ${tokens(q.pick.tokens)}` : layer(q.pick.layer);
  $("scaling-note").textContent = all.length ? `${fixed}, ${q.pick.mode}, ${own ? "options of their own" : q.pick.held}.` : "Nothing was measured so.";
  $("scaling").hidden = !all.length;
  if (all.length) show($("scaling"), { series, x: across(over === "in" ? (wide === tall ? "in_features = out_features" : "in_features") : "tokens", "#", { values: xs }), y: across(title, unit), height: 380 }, (s) => toggle(ordered[s]));
}

// -- all layers

function map(q) {
  const cells = alike(q, ["layer", "tokens", "mode"]), by = (key, compare) => [...new Set(cells.map((one) => one.pick[key]))].sort(compare);
  const shapes = by("layer", (a, b) => size(a)[0] - size(b)[0] || size(a)[1] - size(b)[1]), counts = by("tokens", (a, b) => a - b);
  $("layers-note").textContent = `The fastest at each layer, ${q.pick.held}, ${q.pick.dtype}. Ties with dense are dense's; what loses no less than without layers is left out. Where a rival of dense is ahead, the best structure stands below it. A press opens the ranking.`;
  const said = (one) => `${one.speed}×${one.tied ? ", tie" : ""}`;
  const cell = (mode, count, shape) => {
    const found = cells.find((one) => one.pick.layer === shape && one.pick.tokens === count && one.pick.mode === mode);
    if (!found) return el("td");
    const of = (i) => found.ranking.find((one) => one.i === i), first = of(found.winner), best = of(found.best);
    const button = el("button", { type: "button" }, first ? first.label : "dense", el("small", {}, first ? said(first) : "stays ahead"),
      ...(best && best !== first ? [el("small", {}, `${best.label} ${said(best)}`)] : []));
    button.addEventListener("click", () => change({ layer: shape, tokens: count, mode, tab: "answer" }));
    const colour = first && looks[rows[first.i].look].colour;
    return el("td", { style: colour && `--tint: ${colour}` }, button);
  };
  const lines = by("mode").flatMap((mode) => counts.map((count) => [mode, count])).filter(([mode, count]) => cells.some((one) => one.pick.mode === mode && one.pick.tokens === count));
  table($("map"), ["", ...shapes.map(layer)], lines.map(([mode, count]) => el("tr", {}, el("th", { scope: "row" }, `${mode}, ${tokens(count)}`), ...shapes.map((shape) => cell(mode, count, shape)))));
}

// -- why: the roofline, memory and backends of the chosen layer

function why(q) {
  $("why-note").textContent = `${layer(q.pick.layer)}, ${tokens(q.pick.tokens)}, ${q.pick.mode}, ${q.pick.dtype}, ${q.pick.held}.`;
  const all = every(q), roof = embedded.roofs.find((one) => one.machine === q.pick.machine && one.dtype === q.pick.dtype);
  $("roofline").hidden = !roof;
  if (roof) {
    const series = all.map((one) => {
      const row = rows[one.i];
      return single(one, { x: row.executed / row.bytes, y: row.executed / row.time[0], told: { ...told(one), "bound by": row.bound ? `${row.bound}, ${share(row.near)} of it reached` : "not known" } }, true);
    });
    const xs = series.map((one) => one.points[0].x), low = Math.min(...xs) * 0.7, high = Math.max(...xs) * 1.4;
    const peak = roof.gemm_flops_per_s, rates = [roof.copy_bytes_per_s, roof.cache_bytes_per_s].filter(Boolean);
    const roofs = rates.filter((rate) => low < peak / rate).map((rate) => flat([[low, low * rate], [Math.min(high, peak / rate), Math.min(high * rate, peak)]]));
    show($("roofline"), { series, beside: true, x: across("FLOPs executed for each byte moved at least", "#"), y: across("achieved", "FLOP/s"), guides: [...roofs, flat([[Math.max(low, Math.min(high, peak / Math.max(...rates))), peak], [high, peak]])] });
    $("why-note").textContent += ` Lines: ${prefixed(peak, "FLOP/s")} in a matrix product, ${rates.map((rate) => prefixed(rate, "B/s")).join(" and ")} in a copy from memory${rates[1] ? " and from cache" : ""}.`;
  }
  const bytes = (value) => (value ? prefixed(value, "B") : "");
  const heavy = [...all].sort((a, b) => (rows[a.i].held + (rows[a.i].saved ?? 0)) - (rows[b.i].held + (rows[b.i].saved ?? 0)));
  const parts = [["parameters", "held"], ["kept for backward", "saved"], ["checkpoint", "checkpoint"], ["allocator peak", "peak"]].filter(([, key]) => all.some((one) => rows[one.i][key]));
  table($("memory"), ["", ...parts.map(([name]) => name)], heavy.map((one) => el("tr", {}, el("th", { scope: "row" }, swatch(looks[rows[one.i].look]), one.label),
    ...parts.map(([, key]) => el("td", {}, bytes(rows[one.i][key]))))), "Memory of the layer, the least first.");
  const ways = new Map();
  for (const row of rows) {
    if (!row.speedup || row.rival || !["layer", "tokens", "mode", "dtype", "machine"].every((key) => row[key] === q.pick[key])) continue;
    const key = row.control ? "dense" : row.series;
    ways.set(key, [...(ways.get(key) ?? []), row]);
  }
  const contests = [...ways].filter(([, several]) => new Set(several.map((row) => row.backend)).size > 1);
  table($("backends"), ["", "backends, the fastest first"], contests.map(([name, several]) => el("tr", {}, el("th", { scope: "row" }, name),
    el("td", {}, several.sort((a, b) => b.speedup[0] - a.speedup[0]).map((row) => `${row.backend} ${spread(row.speedup)}`).join(", ")))),
    "The same layer run in several ways, over the best dense layer.");
}

// -- data

const POINTS = [["layer", (r) => layer(r.layer)], ["speed-up", (r) => r.speedup && digits(r.speedup[0]), (r) => r.speedup?.[0]],
  ["quartiles", (r) => r.speedup && `${digits(r.speedup[1])} to ${digits(r.speedup[2])}`], ["time", (r) => prefixed(r.time[0], "s"), (r) => r.time[0]],
  ["tokens", (r) => r.tokens], ["mode", (r) => r.mode], ["type", (r) => r.dtype], ["at", (r) => r.budget], ["options", (r) => r.options], ["backend", (r) => r.backend],
  ["parameters", (r) => share(r.shares[0]), (r) => r.shares[0]], ["FLOPs", (r) => share(r.shares[1]), (r) => r.shares[1]], ["executed", (r) => share(r.shares[2]), (r) => r.shares[2]],
  ["bound by", (r) => r.bound && `${r.bound} ${share(r.near)}`], ["error", (r) => r.error], ["energy", (r) => r.energy && prefixed(r.energy, "J"), (r) => r.energy], ["flags", (r) => r.flags], ["machine", (r) => r.machine]];
const LINES = 30, NAMES = { points: "points", refused: "points that could not run" };
const REFUSED = ["structure", "layer", "reason", "tokens", "mode", "type", "backend", "at"];

function data() {
  if ($("points").tHead) return;
  table($("points"), ["series", ...POINTS.map(([name]) => name)], rows.map((row) => el("tr", {}, el("th", { scope: "row" }, row.series),
    ...POINTS.map(([, text, value]) => el("td", { "data-v": value?.(row) }, text(row) ?? "")))), " ");
  table($("refused"), REFUSED, embedded.refused.map((cells) => el("tr", {}, el("th", { scope: "row" }, cells[0]), ...cells.slice(1).map((cell) => el("td", {}, cell)))),
    " ");
  filter();
}
function sort(button) {
  const heading = button.closest("th"), body = heading.closest("table").tBodies[0], column = heading.cellIndex;
  const up = heading.getAttribute("aria-sort") !== "ascending";
  for (const other of heading.parentNode.children) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", up ? "ascending" : "descending");
  const key = (row) => row.cells[column].dataset.v ?? row.cells[column].textContent.trim();
  const order = (a, b) => {
    if ((a === "") !== (b === "")) return a === "" ? 1 : -1; // empty cells last, either way
    const ascending = isNaN(a) || isNaN(b) ? a.localeCompare(b, undefined, { numeric: true }) : a - b;
    return up ? ascending : -ascending;
  };
  body.append(...[...body.rows].map((row) => [key(row), row]).sort((a, b) => order(a[0], b[0])).map((pair) => pair[1]));
  if (heading.closest("#data")) filter();
}
function filter() {
  const wanted = $("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  for (const id of ["points", "refused"]) {
    let shown = 0;
    for (const row of $(id).tBodies[0].rows) {
      const text = [...row.cells].map((cell) => cell.textContent).join(" ").toLowerCase();
      const has = wanted.every((word) => text.includes(word));
      shown += has;
      row.hidden = !has || shown > LINES;
    }
    $(id).caption.firstChild.textContent = `${shown} ${NAMES[id]}${shown > LINES ? `, the first ${LINES} shown: sort, filter, or open ${id}.csv` : ""}`;
  }
}

// -- sections of other files: one sheet of several at a time

function sheets(section) {
  const form = section.querySelector(".choices"), all = [...section.querySelectorAll(":scope > .sheet")].slice(0, -1);
  const wanted = Object.fromEntries([...(form?.elements ?? [])].map((select) => [select.name, select.value]));
  const has = (sheet) => JSON.parse(sheet.dataset.choices);
  const score = (sheet) => Object.keys(wanted).reduce((sum, key) => sum + (has(sheet)[key] === wanted[key]) * (key === section.dataset.changed ? 100 : 1), 0);
  const shown = all.length && all.reduce((a, b) => (score(b) > score(a) ? b : a));
  for (const sheet of all) sheet.hidden = sheet !== shown;
  for (const select of form?.elements ?? []) if (has(shown)[select.name]) select.value = has(shown)[select.name];
  for (const place of section.querySelectorAll("[data-chart]")) if (place.checkVisibility()) show(place, embedded.charts[place.dataset.chart]);
}

// -- the page

const controlled = (tab) => tab.getAttribute("aria-controls").split(" "); // files of a kind share a tab
const tabs = [...document.querySelectorAll("[role=tab]")].flatMap(controlled);
function change(changes) {
  Object.assign(state, changes);
  const keys = [...PICKED, "tab", "y", "x", "of"].filter((key) => state[key]);
  const names = ["add", "drop"].filter((key) => state[key].length).map((key) => [key, state[key].join(",")]);
  history.replaceState(null, "", "#" + new URLSearchParams([...keys.map((key) => [key, state[key]]), ...names]));
  render();
}
function render() {
  if (!tabs.includes(state.tab)) state.tab = tabs[0];
  for (const tab of document.querySelectorAll("[role=tab]")) tab.setAttribute("aria-selected", controlled(tab).includes(state.tab));
  for (const section of document.querySelectorAll(".tab")) section.hidden = section.id !== state.tab;
  if (questions.length) {
    const q = chosen();
    fill(q);
    $("picker").hidden = !["answer", "layers", "why"].includes(state.tab);
    for (const key of ["y", "x", "of"]) $("scaling-choices").elements[key].value = state[key];
    if (state.tab === "answer") { answer(q); quality(q); scaling(q); }
    if (state.tab === "layers") map(q);
    if (state.tab === "why") why(q);
  }
  if (state.tab === "data" && $("points")) data();
  if ($(state.tab).matches(".section")) sheets($(state.tab));
  document.documentElement.dataset.ready = state.tab;
}
function read() {
  const given = new URLSearchParams(location.hash.slice(1));
  for (const [key, value] of given) {
    if (["add", "drop"].includes(key)) state[key] = value.split(",");
    else if (key in state || PICKED.includes(key)) state[key] = value;
    else if (tabs.includes(key)) state.tab = key; // a plain link to a tab
  }
  if (!(state.y in QUANTITIES)) state.y = "speedup";
  render();
}

if (questions.length) {
  for (const key of PICKED) state[key] = questions[0].pick[key];
  $("scaling-choices").elements.y.replaceChildren(...Object.entries(QUANTITIES).map(([key, [name]]) => el("option", { value: key }, name)));
}
document.addEventListener("change", ({ target }) => {
  if (target.closest("#picker")) change({ [target.name]: target.value, changed: target.name });
  else if (target.closest("#scaling-choices")) change({ [target.name]: target.value });
  else if (target.closest(".section .choices")) { target.closest(".section").dataset.changed = target.name; sheets(target.closest(".section")); }
});
document.addEventListener("click", (event) => {
  const tab = event.target.closest("[role=tab], .files a");
  if (tab) { event.preventDefault(); change({ tab: tab.hash.slice(1) }); }
  if (event.target.matches(".sortable button")) sort(event.target);
});
document.addEventListener("input", ({ target }) => target.id === "filter" && filter());
document.addEventListener("toggle", ({ target }) => target.open && state.tab && target.closest(".section") && sheets(target.closest(".section")), true);
addEventListener("hashchange", read);
let width = innerWidth, waiting;
addEventListener("resize", () => {
  if (innerWidth === width) return;
  width = innerWidth;
  clearTimeout(waiting);
  waiting = setTimeout(() => drawn.forEach((make, place) => place.checkVisibility() && make()), 150);
});
read();
