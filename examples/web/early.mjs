// An exported file in onnxruntime-web: token rows in, exit layers and logits out.
import * as ort from "onnxruntime-web";

ort.env.wasm.numThreads = 1; // more of them need headers of the server that allow shared memory

const WORDS = { never: Infinity, always: -Infinity };

/** An operating point's thresholds as numbers; `operating_points.json` has words where JSON has no number. */
export const numbers = (thresholds) => thresholds.map((value) => WORDS[value] ?? value);

/** Load a file by its path or address. */
export const load = (source) => ort.InferenceSession.create(source, { enableMemPattern: false });

/** Answer token rows ({input_ids, ...} each, unpadded) in one batch: logits (B, C), exitLayers (B,). */
export async function answer(session, rows, thresholds, padTokenId) {
  const length = Math.max(2, ...rows.map((row) => row.input_ids.length)); // the graph needs a second token
  const feeds = { thresholds: new ort.Tensor("float32", thresholds, [1, thresholds.length]) };
  for (const name of session.inputNames.filter((name) => name !== "thresholds")) {
    const filler = name === "input_ids" ? padTokenId : 0;
    const padded = rows.flatMap((row) => Array.from({ length }, (_, place) => BigInt(row[name][place] ?? filler)));
    feeds[name] = new ort.Tensor("int64", BigInt64Array.from(padded), [rows.length, length]);
  }
  const { logits, exit_layer } = await session.run(feeds, ["logits", "exit_layer"]);
  const width = logits.dims[1];
  return {
    logits: rows.map((_, row) => logits.data.slice(row * width, (row + 1) * width)),
    exitLayers: Array.from(exit_layer.data, Number),
  };
}
