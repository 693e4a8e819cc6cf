// Does the exported file say in WebAssembly what it says in Python?
//
//     node run.mjs model/web.model.int8.onnx rows.json
//
// `rows.py` writes both. Exit code 1: more rows left at another layer than are allowed to.
import { readFileSync } from "node:fs";
import { answer, load, numbers } from "./early.mjs";

const ROUNDS = 5; // calls a text; the fastest counts

const [model, file] = process.argv.slice(2);
const told = JSON.parse(readFileSync(file, "utf8"));
const { rows } = told;
const limits = numbers(told.thresholds);
const session = await load(model);
const ask = (rows, limits) => answer(session, rows, limits, told.pad_token_id);

/** Answer every row by itself. */
async function oneByOne() {
  const all = { logits: [], exitLayers: [] };
  for (const row of rows) {
    const { logits, exitLayers } = await ask([row], limits);
    all.logits.push(...logits);
    all.exitLayers.push(...exitLayers);
  }
  return all;
}

/** Say how far answers agree; returns whether enough rows left at the same layer. */
function compare(name, got, wanted) {
  const others = rows.map((_, row) => row).filter((row) => got.exitLayers[row] !== wanted.exit_layers[row]);
  const apart = got.logits.map((logits, row) =>
    others.includes(row) ? 0 : Math.max(...logits.map((logit, i) => Math.abs(logit - wanted.logits[row][i]))),
  );
  console.log(`${name}: ${rows.length - others.length} of ${rows.length} rows leave where they leave in Python`);
  for (const row of others) {
    console.log(`  row ${row}: layer ${got.exitLayers[row]}, in Python ${wanted.exit_layers[row]}`);
  }
  console.log(`  largest difference of the others' logits: ${Math.max(...apart).toExponential(1)}`);
  return others.length <= told.allowed;
}

/** Median milliseconds a row; of each, the fastest call. */
async function milliseconds(limits) {
  const fastest = rows.map(() => Infinity);
  for (let round = 0; round < ROUNDS; round++) {
    for (const [number, row] of rows.entries()) {
      const start = performance.now();
      await ask([row], limits);
      fastest[number] = Math.min(fastest[number], performance.now() - start);
    }
  }
  return fastest.sort((a, b) => a - b)[rows.length >> 1];
}

const agree = [
  compare("one by one", await oneByOne(), told.alone),
  compare("in one batch", await ask(rows, limits), told.together),
];
const [early, full] = [await milliseconds(limits), await milliseconds(limits.map(() => Infinity))];
console.log(`milliseconds a text: ${early.toFixed(1)}, at full depth ${full.toFixed(1)}`);
console.log(`  in Python: ${told.ms.toFixed(1)}, at full depth ${told.full_ms.toFixed(1)}`);
process.exit(agree.every(Boolean) ? 0 : 1);
