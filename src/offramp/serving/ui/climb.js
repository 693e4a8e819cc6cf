// A text at every exit, and what each operating point does with it.

import { $, colored, element, share, whenLeft, widthOf } from "./elements.js";
import { ask } from "./server.js";
import { state } from "./traffic.js";

let explained = null,
  chosen = null,
  sending = null;

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
