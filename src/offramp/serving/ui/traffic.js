// What the server does, once a second.

import { $, element, milliseconds, share, whenLeft, widthOf } from "./elements.js";
import { ask } from "./server.js";

const POLL_MS = 1000,
  SECONDS = 60;
export let state = null;
let timer = 0;

export async function poll() {
  try {
    if (!document.hidden && $("key-form").hidden) {
      state = await ask("ui/traffic");
      $("status").textContent = state.processes ? "running" : "no process is ready";
      $("status").className = state.processes ? "up" : "down";
      showState();
    }
  } catch (error) {
    $("status").textContent = $("key-form").hidden
      ? error instanceof TypeError
        ? "no connection"
        : error.message
      : "a key is needed";
    $("status").className = "down";
  }
  clearTimeout(timer); // of another call that was under way
  timer = setTimeout(poll, POLL_MS);
}

function showState() {
  const { traffic } = state;
  $("model").textContent = `${state.model}, ${state.engine}`;
  document.title = `offramp: ${state.model}`;
  showEmpty();
  number("requests", traffic.requests_s.toFixed(traffic.requests_s < 10 ? 1 : 0));
  number("p50", ...milliseconds(traffic.recent_p50_ms));
  number("p99", ...milliseconds(traffic.recent_p99_ms));
  number("waiting", state.waiting);
  const rows = Object.entries(traffic.recent_layers),
    total = rows.reduce((sum, [, count]) => sum + count, 0);
  const mean = rows.reduce((sum, [layer, count]) => sum + layer * count, 0) / total;
  number("saved", total ? share(1 - mean / state.layers.at(-1)) : "–");
  showRows(traffic);
  showLatency(traffic);
  showLayers(traffic.recent_layers, total);
  showPoints(traffic);
}

function number(id, text, unit = "") {
  $(id).replaceChildren(String(text), ...(unit ? [" ", element("small", {}, unit)] : []));
}

const depthOf = (layer) => 0.3 + (0.7 * state.layers.indexOf(Number(layer))) / Math.max(state.layers.length - 1, 1);

function showRows({ layers, rows_s }) {
  const names = Object.keys(layers).sort((one, other) => one - other);
  const sums = Array.from({ length: SECONDS }, (_, second) =>
    names.reduce((sum, name) => sum + layers[name][second], 0),
  );
  const top = Math.max(...sums, 1),
    bars = [];
  for (let second = 0; second < SECONDS; second++) {
    let below = 100;
    for (const name of names) {
      const height = (96 * layers[name][second]) / top;
      below -= height;
      if (height)
        bars.push(
          element("rect", {
            x: second + 0.08,
            y: below,
            width: 0.84,
            height,
            fill: "var(--series-1)",
            "fill-opacity": depthOf(name),
          }),
        );
    }
  }
  $("rows-chart").replaceChildren(...bars);
  $("rows-chart").setAttribute(
    "aria-label",
    `Rows a second over 60 seconds; now ${rows_s.toFixed(1)}, at most ${top}.`,
  );
  $("rows-scale").textContent = `at most ${top}`;
}

function showLatency({ p50_ms, p99_ms, recent_p50_ms, recent_p99_ms }) {
  const most = Math.max(...p99_ms),
    top = most || 1,
    lines = [
      [p50_ms, "var(--series-1)"],
      [p99_ms, "var(--series-2)"],
    ];
  $("latency-chart").replaceChildren(
    ...lines.map(([values, stroke]) => element("path", { d: lineOf(values, top), stroke })),
  );
  const words = [recent_p50_ms, recent_p99_ms].map((value) => milliseconds(value).join(" "));
  $("latency-chart").setAttribute(
    "aria-label",
    `Latency over 60 seconds; now the median is ${words[0]}, the 99th percentile ${words[1]}.`,
  );
  $("latency-scale").textContent = most ? `at most ${milliseconds(most).join(" ")}` : "";
}

/** Return an SVG path through the seconds that have a value; a gap where one has none. */
function lineOf(values, top) {
  let pen = "M";
  return values
    .map((value, second) => {
      if (value == null) return ((pen = "M"), "");
      const step = `${pen}${second + 0.5} ${(97 - (94 * value) / top).toFixed(2)}`;
      const dot = pen === "M" ? `h.01` : "";
      pen = "L";
      return step + dot;
    })
    .join("");
}

function showLayers(recent, total) {
  const items = state.layers.map((layer) => {
    const part = total ? (recent[layer] ?? 0) / total : 0,
      fill = widthOf(element("span"), part);
    fill.style.opacity = depthOf(layer);
    return element(
      "li",
      {},
      element("span", { class: "name" }, whenLeft(layer)),
      element("div", { class: "track", "aria-hidden": "true" }, fill),
      element("span", { class: "number" }, total ? share(part) : "–"),
    );
  });
  $("layers").replaceChildren(...items);
}

function showPoints({ points }) {
  const sums = Array.from({ length: SECONDS }, (_, second) =>
    Object.values(points).reduce((sum, rows) => sum + rows[second], 0),
  );
  $("points-title").textContent = state.ladder ? "The ladder, last 60 s" : "Operating points, last 60 s";
  const items = state.points.map((point) => {
    const rows = points[point.name] ?? [],
      roll = element("svg", { viewBox: "0 0 60 1", preserveAspectRatio: "none" });
    rows.forEach((count, second) => {
      if (count)
        roll.append(
          element("rect", {
            x: second,
            y: 0,
            width: 1.02,
            height: 1,
            fill: "var(--series-6)",
            "fill-opacity": 0.25 + (0.75 * count) / sums[second],
          }),
        );
    });
    const kind = [point.name === state.point && "force", point.closed && "closed", !point.allowed && "far"]
      .filter(Boolean)
      .join(" ");
    const name = element("span", { class: "name" }, point.name),
      facts = factsOf(point);
    const item = element(
      "li",
      { class: kind },
      name,
      element("div", { class: "track", "aria-hidden": "true" }, roll),
      element("span", { class: "number" }, point.cost == null ? "–" : share(point.cost)),
    );
    if (facts) item.append(element("div", { class: "facts" }, facts));
    return item;
  });
  $("points").replaceChildren(...items);
  const dropped = state.dropped ? `, ${state.dropped} dropped` : "";
  $("audit").textContent = state.ladder
    ? `The number is the cost of a row against full depth. Audited so far: ${state.audited} rows${dropped}.`
    : "The number is the cost of a row against full depth.";
}

function factsOf(point) {
  const facts = [];
  if (point.name === state.point) facts.push("in force");
  if (point.closed) facts.push("closed: its answers differ too often");
  if (!point.allowed && point.name !== state.point) facts.push("load does not lead here");
  if (point.level) facts.push(`certified: at least ${share(1 - point.level)} as at full depth`);
  if (point.audited) facts.push(`${point.differ} of ${point.audited} audited rows differ`);
  if (point.agreement_bound != null && point.agreement_bound < 1)
    facts.push(`so the agreement is at most ${share(point.agreement_bound)}`);
  return facts.join("; ");
}

function showEmpty() {
  if ($("exits").children.length) return;
  const items = state.layers.map((layer) =>
    element("li", { class: "empty" }, element("div", { class: "layer" }, layer ? `layer ${layer}` : "before layer 1")),
  );
  $("exits").replaceChildren(...items);
}
