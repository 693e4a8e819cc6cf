// The page of a server: what becomes of a text at each operating point, and what the server does.
// All texts go into the page as text, never as HTML.

const POLL_MS = 1000,
  SECONDS = 60,
  COLORS = 7;
const $ = (id) => document.getElementById(id);
let key = "",
  state = null,
  explained = null,
  chosen = null,
  sending = null;

// --- elements -----------------------------------------------------------------------------------------------------

function element(name, attributes = {}, ...children) {
  const svg = ["svg", "rect", "path"].includes(name);
  const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [attribute, value] of Object.entries(attributes)) made.setAttribute(attribute, value);
  made.append(...children);
  return made;
}

function share(part) {
  if (part > 0 && part < 0.0005) return "< 0.1 %";
  if (part < 1 && part >= 0.9995) return "> 99.9 %";
  const text = (100 * part).toFixed(part > 0.0995 && part < 0.9895 ? 0 : 1);
  return `${text.replace(/\.0$/, "")} %`;
}

function widthOf(box, part) {
  box.style.width = `${100 * Math.min(Math.max(part, 0), 1)}%`;
  return box;
}

const colored = (number) => (number < COLORS ? `var(--series-${number + 1})` : "var(--rest)");
const whenLeft = (layer) => (layer ? `after layer ${layer}` : "before layer 1");

// --- the server ---------------------------------------------------------------------------------------------------

async function ask(path, options = {}) {
  const headers = key ? { authorization: `Bearer ${key}` } : {};
  const answer = await fetch(path, { cache: "no-store", ...options, headers: { ...headers, ...options.headers } });
  if (answer.status === 401) askForKey();
  const body = await answer.json().catch(() => ({})); // a proxy may answer in its own form
  if (!answer.ok) throw new Error(body.error ?? `the answer has status ${answer.status}`);
  return body;
}

function askForKey() {
  if (!$("key-form").hidden) return;
  $("key-form").hidden = false;
  $("key").focus();
}

$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key = $("key").value.trim();
  $("key").value = "";
  $("key-form").hidden = true;
  poll();
  $("text").focus();
});

// --- a text -------------------------------------------------------------------------------------------------------

async function send() {
  sending?.abort();
  const own = (sending = new AbortController());
  const pair = $("pair").hidden ? {} : { text_pair: $("second").value };
  const body = JSON.stringify({ text: $("text").value, ...pair });
  const slow = setTimeout(() => say("Climbing; the first text takes a few seconds."), 800);
  $("exits").setAttribute("aria-busy", "true");
  try {
    const headers = { "content-type": "application/json" };
    explained = await ask("ui/explain", { method: "POST", body, headers, signal: own.signal });
    showLadder();
    showPoint(true);
  } catch (error) {
    if (error.name !== "AbortError") say(error.message, true);
  } finally {
    clearTimeout(slow);
    if (sending === own) $("exits").removeAttribute("aria-busy");
  }
}

function say(text, fault = false) {
  $("result").textContent = text;
  $("result").classList.toggle("fault", fault);
}

$("text-form").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
for (const box of [$("text"), $("second")]) {
  box.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    $("text-form").requestSubmit();
  });
}
$("pair-button").addEventListener("click", () => {
  const open = $("pair").hidden;
  $("pair").hidden = !open;
  $("pair-button").textContent = open ? "Only one text" : "Add a second text";
  $("pair-button").setAttribute("aria-expanded", open);
  if (open) $("second").focus();
});
$("point").addEventListener("input", () => {
  chosen = explained.points[$("point").value].name;
  showPoint(false);
});

function showLadder() {
  const names = explained.points.map((point) => point.name);
  if (!names.includes(chosen)) chosen = null;
  $("point").max = names.length - 1;
  $("point").value = Math.max(names.indexOf(chosen ?? explained.point), 0);
  const ticks = names.length > 7 ? [names[0], names.at(-1)] : names;
  $("ticks").replaceChildren(
    ...ticks.map((name, number) => {
      const tick = element("span", {}, name);
      tick.style.setProperty("--at", ticks.length > 1 ? number / (ticks.length - 1) : 0);
      return tick;
    }),
  );
  $("ladder").hidden = names.length < 2;
}

function showPoint(climbs) {
  const number = Number($("point").value),
    point = explained.points[number];
  const cost = state?.points.find((other) => other.name === point.name)?.cost;
  const facts = [
    cost == null ? "" : `${share(cost)} of the cost of full depth`,
    point.name === explained.point ? "in force" : "",
  ];
  $("point-name").replaceChildren(point.name, element("small", {}, facts.filter(Boolean).join(", ")));
  $("point").setAttribute("aria-valuetext", point.name);
  [...$("ticks").children].forEach((tick) => tick.classList.toggle("chosen", tick.textContent === point.name));
  showResult(point);
  const colors = colorsOf(explained.points),
    scale = scaleOf(point.policy);
  const own = new Map(
    explained.points.find((other) => !other.policy && other.exits.length)?.exits.map((exit) => [exit.layer, exit]),
  );
  const read = new Map(point.exits.map((exit) => [exit.layer, exit]));
  const items = explained.layers.map((layer, step) => {
    const item = exitItem(layer, read.get(layer), own.get(layer), point, colors, scale);
    item.style.setProperty("--step", step);
    return item;
  });
  $("exits").classList.toggle("climbing", climbs);
  $("exits").replaceChildren(...items);
}

function showResult(point) {
  if (point.error) return say(`${point.name}: ${point.error}`, true);
  const full = explained.points.find((other) => other.name === "full"),
    last = explained.layers.at(-1);
  const answer = element("strong", {}, point.answer.join(", ") || "no label");
  const left = point.exits.find((exit) => exit.layer === point.exit_layer);
  const same =
    !full || full === point
      ? ""
      : full.answer.join() === point.answer.join()
        ? " Full depth has the same answer."
        : ` Full depth has: ${full.answer.join(", ") || "no label"}.`;
  const saved = last - point.exit_layer;
  const layers = saved ? `${saved} of ${last} layers did not run.` : "All layers ran.";
  $("result").classList.remove("fault");
  const why = left.reason.replace(/: leaves$/, "");
  $("result").replaceChildren(answer, `, ${whenLeft(point.exit_layer)}: ${why}.`, element("small", {}, layers + same));
}

/** Return label -> color, the label with the largest probability at any exit first. */
function colorsOf(points) {
  const most = new Map();
  for (const point of points)
    for (const exit of point.exits)
      for (const [label, value] of exit.outputs) most.set(label, Math.max(value, most.get(label) ?? 0));
  const names = [...most.keys()].sort((one, other) => most.get(other) - most.get(one));
  return new Map(names.map((name, number) => [name, colored(number)]));
}

/** Return the ends of a policy's scores and thresholds over all points. */
function scaleOf(policy) {
  const exits = explained.points.filter((point) => point.policy === policy).flatMap((point) => point.exits);
  const numbers = exits.flatMap((exit) => [exit.score, exit.threshold]).filter((number) => number != null);
  return [Math.min(0, ...numbers), Math.max(...numbers, 0) || 1];
}

function exitItem(layer, exit, own, point, colors, scale) {
  const beyond = layer > point.exit_layer,
    left = layer === point.exit_layer;
  const item = element("li", { class: left ? "left" : beyond ? "beyond" : exit ? "passed" : "unread" });
  const title = element("div", { class: "layer" }, layer ? `layer ${layer}` : "before layer 1");
  if (left) title.append(element("small", {}, "leaves here"));
  else if (!layer && !beyond) title.append(element("small", {}, "the words alone"));
  const shown = exit ?? own;
  item.append(
    title,
    shown ? outputsBox(shown, colors) : element("div"),
    element("div", {}, ...reasonParts(exit, beyond, scale)),
  );
  return item;
}

function reasonParts(exit, beyond, [low, high]) {
  if (!exit) return [element("div", { class: "reason" }, "this point does not read this exit")];
  const words = element("div", { class: "reason" }, beyond ? "not run" : exit.reason);
  if (exit.score == null) return [words];
  const gauge = element("div", { class: "gauge", "aria-hidden": "true" });
  gauge.append(widthOf(element("div", { class: "score" }), (exit.score - low) / (high - low)));
  if (exit.threshold != null) {
    const limit = element("div", { class: "limit" });
    limit.style.left = `calc(${(100 * (exit.threshold - low)) / (high - low)}% - 1px)`;
    gauge.append(limit);
  }
  return [gauge, words];
}

function outputsBox(exit, colors) {
  const regression = state?.problem === "regression",
    several = state?.problem === "multi_label_classification";
  const draw = regression ? valueLine : several ? labelBars : classStack;
  const names = element("div", { class: "names" }),
    most = several ? 5 : 3;
  for (const [label, value] of exit.outputs.slice(0, most)) {
    const name = element("b", {}, `${label} ${regression ? value.toFixed(3) : share(value)}`);
    name.style.setProperty("--of", colors.get(label));
    names.append(name, " ");
  }
  const others = exit.others + Math.max(exit.outputs.length - most, 0);
  if (others) names.append(element("span", {}, `${others} ${others === 1 ? "other" : "others"}`));
  return element("div", {}, draw(exit.outputs, colors), names);
}

/** Draw classes side by side: their widths are their probabilities. */
function classStack(outputs, colors) {
  const parts = outputs.map(([label, value]) => filled(widthOf(element("span"), value), colors.get(label)));
  return element("div", { class: "stack", "aria-hidden": "true" }, ...parts);
}

/** Draw a box for each label, filled as far as its probability. */
function labelBars(outputs, colors) {
  const boxes = outputs.map(([label, value]) =>
    element("div", {}, filled(widthOf(element("span"), value), colors.get(label))),
  );
  return element("div", { class: "boxes", "aria-hidden": "true" }, ...boxes);
}

/** Draw values as dots between the smallest and the largest value of any exit. */
function valueLine(outputs, colors) {
  const values = explained.points
    .flatMap((point) => point.exits)
    .flatMap((exit) => exit.outputs.map(([, value]) => value));
  const low = Math.min(...values),
    width = Math.max(...values) - low || 1;
  const dots = outputs.map(([label, value]) => {
    const dot = filled(element("span"), colors.get(label));
    dot.style.left = `${(100 * (value - low)) / width}%`;
    return dot;
  });
  return element("div", { class: "values", "aria-hidden": "true" }, ...dots);
}

function filled(box, color) {
  box.style.background = color;
  return box;
}

function showEmpty() {
  if (explained || $("exits").children.length) return;
  const items = state.layers.map((layer) =>
    element("li", { class: "empty" }, element("div", { class: "layer" }, layer ? `layer ${layer}` : "before layer 1")),
  );
  $("exits").replaceChildren(...items);
}

// --- traffic ------------------------------------------------------------------------------------------------------

let timer = 0;

async function poll() {
  clearTimeout(timer);
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

function milliseconds(value) {
  return value == null ? ["–"] : [value < 10 ? value.toFixed(1) : value.toFixed(0), "ms"];
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
  if (!point.allowed) facts.push("load does not lead here");
  if (point.level) facts.push(`certified: at least ${share(1 - point.level)} as at full depth`);
  if (point.audited) facts.push(`${point.differ} of ${point.audited} audited rows differ`);
  if (point.agreement_bound != null && point.agreement_bound < 1)
    facts.push(`so the agreement is at most ${share(point.agreement_bound)}`);
  return facts.join("; ");
}

document.addEventListener("visibilitychange", () => document.hidden || poll());
poll();
