// Charts: the same Vega-Lite as drawing/plot.py makes of the same chart, with the same ticks and places of names.
const embedded = JSON.parse(document.getElementById("embedded").textContent);
const GAP = 13, LETTER = 6, LINE = 12;
const STEPS = [[1, 1.5, 2, 3, 4, 5, 6, 8], [1, 2, 5], [1, 3], [1]];
const SIDES = [[9, 0, "left"], [-9, 0, "right"], [0, -12, "center"], [0, 13, "center"], [7, -11, "left"], [7, 11, "left"],
  [-7, -11, "right"], [-7, 11, "right"]];

function limits(values, log) {
  const low = Math.min(...values), high = Math.max(...values);
  if (!values.length) return [0.9, 1.1];
  if (log) {
    const pad = Math.max(1.03, (high / low) ** 0.05);
    return [low / pad, high * pad];
  }
  const pad = (high - low || Math.abs(high) || 1) * 0.05;
  return [low - pad, high + pad];
}

function ticks(low, high, log) {
  if (!log || high < low * 4) {
    const power = 10 ** Math.floor(Math.log10((high - low) / 4));
    const step = [1, 2, 5, 10].map((s) => s * power).find((s) => (high - low) / s <= 7);
    const found = [];
    for (let i = Math.ceil(low / step); i <= Math.floor(high / step); i++) found.push(Number((i * step).toPrecision(12)));
    return found;
  }
  const powers = [];
  for (let p = Math.floor(Math.log10(low)); p <= Math.ceil(Math.log10(high)); p++) powers.push(10 ** p);
  const inside = (steps) => powers.flatMap((p) => steps.map((s) => s * p)).filter((v) => low <= v && v <= high);
  return STEPS.map(inside).find((found) => found.length <= 11) ?? inside([1]);
}

function apart(wanted, gap, height) {
  const groups = [];
  for (const i of wanted.map((_, i) => i).sort((a, b) => wanted[a] - wanted[b])) {
    let start = wanted[i], members = [i];
    while (groups.length && groups.at(-1).start + gap * groups.at(-1).members.length > start) {
      members = groups.pop().members.concat(members);
      const mean = members.reduce((sum, m, k) => sum + wanted[m] - gap * k, 0) / members.length;
      start = Math.max(0, Math.min(mean, height - gap * (members.length - 1)));
    }
    groups.push({ start, members });
  }
  const placed = [];
  for (const { start, members } of groups) members.forEach((m, k) => { placed[m] = start + gap * k; });
  return placed;
}

function free(wanted, marks, width, height) {
  const taken = [...marks];
  const touches = (a) => taken.some((b) => a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3]);
  return wanted.map(([name, x, y]) => SIDES.find(([dx, dy, align]) => {
    const long = LETTER * name.length;
    const left = x + dx - { left: 0, right: long, center: long / 2 }[align];
    const box = [left, y + dy - LINE / 2, left + long, y + dy + LINE / 2];
    if (box[0] < 0 || box[1] < 0 || box[3] > height || box[2] > width + 60 || touches(box)) return false;
    taken.push(box);
    return true;
  }));
}

function axis(asked, found) {
  const domain = asked.domain ?? limits(found, asked.log);
  const written = embedded.parts.formats[asked.unit] ?? `${embedded.parts.formats.si} + '${asked.unit}'`;
  return {
    scale: { type: asked.log ? "log" : "linear", domain, nice: false, clamp: true, ...(asked.log ? {} : { zero: false }) },
    axis: { title: asked.title || null, labelExpr: written, values: asked.values ?? ticks(...domain, asked.log),
      labelOverlap: "greedy" },
  };
}

const given = (value) => value !== null && value !== undefined;
const look = (own) => ({ color: own.colour, fill: own.hollow ? "transparent" : own.colour, shape: own.marker,
  strokeDash: own.dash, strokeWidth: own.width });

function spec(chart, width) {
  const points = chart.series.flatMap((s) => s.points), ends = chart.guides.flatMap((g) => g.points);
  const x = axis(chart.x, [...points.flatMap((p) => [p.x, p.left, p.right]).filter(given), ...ends.map((e) => e[0])]);
  const y = axis(chart.y, [...points.flatMap((p) => [p.y, p.low, p.high]).filter(given), ...ends.map((e) => e[1])]);
  const layer = structuredClone(embedded.parts.layer);
  for (const one of layer) for (const [channel, own] of [["x", x], ["y", y]]) Object.assign(one.encoding[channel], own);
  const part = (value, { type, domain: [low, high] }) => {
    const inside = Math.min(Math.max(value, low), high);
    return type === "log" ? Math.log(inside / low) / Math.log(high / low) : (inside - low) / (high - low);
  };
  const across = (value) => part(value, x.scale) * width, down = (value) => (1 - part(value, y.scale)) * chart.height;
  const [low, high] = y.scale.domain;
  const at = (down) => {
    const share = 1 - down / chart.height;
    return chart.y.log ? low * (high / low) ** share : low + (high - low) * share;
  };
  const boxes = (p) => { // what a point and its bars cover
    const x = across(p.x), y = down(p.y);
    return [[x - 5, y - 5, x + 5, y + 5], ...(given(p.left) ? [[across(p.left), y - 1, across(p.right), y + 1]] : []),
      ...(given(p.low) ? [[x - 1, down(p.high), x + 1, down(p.low)]] : [])];
  };
  const named = chart.series.filter((s) => s.named && s.points.length).map((s) => ({ s, p: s.points.at(-1) }));
  const places = chart.beside
    ? free(named.map(({ s, p }) => [s.label, across(p.x), down(p.y)]), points.flatMap(boxes), width, chart.height)
    : apart(named.map(({ p }) => down(p.y)), GAP, chart.height);
  const labels = named.flatMap(({ s, p }, i) => {
    if (!chart.beside) return [{ label: s.label, ...look(s.look), x0: p.x, y0: p.y, x: x.scale.domain[1], y: at(places[i]), dx: 26, dy: 0, align: "left" }];
    return places[i] ? [{ label: s.label, x: p.x, y: p.y, dx: places[i][0], dy: places[i][1], align: places[i][2] }] : [];
  });
  const data = {
    guides: chart.guides.flatMap((g, s) => g.points.map(([x, y], i) => ({ s, i, x, y, color: g.color, strokeDash: g.strokeDash, strokeWidth: g.strokeWidth }))),
    points: chart.series.flatMap((one, s) => one.points.map((p, i) => ({ ...p, ...look(one.look), opacity: one.faint ? 0.4 : 1,
      size: one.faint ? 16 : 52, s, i, line: one.line, said: Object.values(p.told).slice(0, 3).join(", ") }))),
    labels,
  };
  return { title: chart.title, width, height: chart.height, layer, datasets: data };
}

// `clicked` is called with the number of the series that a reader points at and presses.
async function draw(place, chart, clicked) {
  const names = chart.series.filter((s) => s.named).map((s) => s.label.length);
  const beside = chart.beside ? 30 : 40 + Math.min(170, LETTER * Math.max(0, ...names)); // room for names
  const made = spec(chart, Math.max(150, place.clientWidth - 60 - beside));
  delete made.title; // the page's own heading
  const padding = { left: 2, top: 10, bottom: 4, right: 4 };
  // ast: expressions are interpreted, so the page needs no right to evaluate text as a script
  const options = { ast: true, actions: false, renderer: "svg", config: embedded.parts.config };
  try {
    const { view } = await vegaEmbed(place, { ...made, padding }, options);
    if (clicked) view.addEventListener("click", (_, item) => given(item?.datum?.s) && clicked(item.datum.s));
    place.dataset.drawn = "yes";
  } catch (error) {
    place.textContent = "This chart could not be drawn: " + error.message;
  }
}

window.spec = spec; // so that it can be compared with what Python makes of a chart
