"""The full-depth models of `serving_race.py`: exported once into a folder, and loaded by the servers without torch.

The encoder with its last head, without exits, in the ways that were the fastest in `speed.py` on this machine or near
it: exact and dynamic int8 in ONNX Runtime, with and without the fusion of sums and norms, and int8 of OpenVINO.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from offramp.data.padding import Array, padded

FILES = {
    "exact int8": "exact.onnx",
    "exact int8, norms fused": "exact.onnx",
    "dynamic int8": "dynamic.onnx",
    "dynamic int8, norms fused": "dynamic.onnx",
    "openvino int8": "openvino.xml",
}
SIZES, TRIAL_TEXTS, TRIALS = (1, 8), 96, 3


class FullDepth:
    """A full-depth model: texts in, probabilities out; for several threads at once.

    Attributes:
        labels: names of the classes.
    """

    def __init__(self, folder: str, export: str, name: str, threads: int) -> None:
        from tokenizers import Tokenizer

        config = json.loads((Path(folder) / "config.json").read_text())
        self.labels = [config["id2label"][str(number)] for number in range(len(config["id2label"]))]
        self._pad = config["backbone"].get("pad_token_id", 0)
        self._types = config["backbone"].get("type_vocab_size", 0) > 1
        self._tokenizer = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
        self._tokenizer.enable_truncation(512)
        self._tokenizer.no_padding()
        path = Path(export) / FILES[name]
        load = _in_openvino if name.startswith("openvino") else _in_onnx_runtime
        self._run = load(path, threads, name.endswith("fused"))

    def tokens(self, text: str) -> dict[str, list[int]]:
        """Return the tokens of a text."""
        encoding = self._tokenizer.encode(text)
        row = {"input_ids": encoding.ids, "attention_mask": encoding.attention_mask}
        return {**row, "token_type_ids": encoding.type_ids} if self._types else row

    def probabilities(self, rows: Sequence[dict[str, list[int]]]) -> Array:
        """Return each row's probabilities, (B, C) float32."""
        logits = self._run(padded(rows, self._pad))
        powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
        shares: Array = powers / powers.sum(axis=-1, keepdims=True)
        return shares

    def ranked(self, shares: Array) -> list[dict[str, Any]]:
        """Return a row's answer as text-embeddings-inference gives it, the most probable class first."""
        order = np.argsort(-shares, kind="stable")
        return [
            {"score": score, "label": self.labels[index]}
            for index, score in zip(order.tolist(), shares[order].tolist(), strict=True)
        ]


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of a server around a full-depth model."""
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--folder", required=True, help="of the model with exits")
    parser.add_argument("--export", required=True, help="the folder of the full-depth models")
    parser.add_argument("--model", choices=list(FILES), required=True)
    parser.add_argument("--threads", type=int, default=1, help="that compute a batch")


def _in_onnx_runtime(path: Path, threads: int, fused: bool) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    slow = [] if fused else ["SkipLayerNormFusion"]
    session = onnxruntime.InferenceSession(
        str(path), options, providers=["CPUExecutionProvider"], disabled_optimizers=slow
    )
    names = [value.name for value in session.get_inputs()]
    return lambda batch: session.run(None, {name: batch[name] for name in names})[0]


def _in_openvino(path: Path, threads: int, _: bool) -> Any:
    import openvino

    streams = 2 if threads == 1 else 1
    settings = {"NUM_STREAMS": streams, "INFERENCE_NUM_THREADS": threads * streams}
    compiled = openvino.Core().compile_model(str(path), "CPU", settings)
    names = [value.get_any_name() for value in compiled.inputs]
    local = threading.local()

    def run(batch: dict[str, Array]) -> Array:
        if not hasattr(local, "request"):
            local.request = compiled.create_infer_request()
        local.request.infer({name: batch[name] for name in names}, share_inputs=True)
        return np.array(local.request.get_output_tensor(0).data, np.float32)

    return run


def export_missing(folder: Path, export: Path, texts: Sequence[str]) -> None:
    """Write the files of FILES, unless they are there.

    Args:
        folder: of the model with exits.
        export: gets the files.
        texts: of training, from which int8 takes the ranges of activations.
    """
    if all((export / file).exists() for file in FILES.values()):
        return
    import onnx
    import openvino
    from onnx.utils import Extractor

    from offramp.bench.baselines import export_exits, output_at
    from offramp.bench.dynamic_int8 import dynamic_int8
    from offramp.bench.in_openvino import quantized
    from offramp.bench.texts import TextEncoder
    from offramp.inference.onnx.quantize import exact_int8
    from offramp.inference.onnx.torch_export import silence_exporter
    from offramp.model.activation_ranges import EMBEDDING, measure_ranges
    from offramp.model.hub import load_tokenizer
    from offramp.model.loading import load_model

    export.mkdir(parents=True, exist_ok=True)
    model = load_model(folder).eval()
    encoder = TextEncoder(load_tokenizer(folder), model.config)
    rows, layers = encoder.encode(texts), list(model.config.exit_layers)
    graph = export_exits(model)
    inputs = [value.name for value in graph.graph.input]
    modules = {name: name for name, _ in model.backbone.named_modules()}
    exact = exact_int8(measure_ranges(model, rows))(graph, (EMBEDDING, *layers), modules)
    with silence_exporter():
        dynamic = dynamic_int8(graph)
    for file, whole in (("exact.onnx", exact), ("dynamic.onnx", dynamic), ("float32.onnx", graph)):
        onnx.save(Extractor(whole).extract_model(inputs, [output_at(layers[-1])]), export / file)
    plain = openvino.Core().read_model(export / "float32.onnx")
    openvino.save_model(quantized(plain, [encoder.batch([row]) for row in rows]), export / "openvino.xml", False)
    (export / "float32.onnx").unlink()


def fastest(folder: Path, export: Path, texts: Sequence[str]) -> dict[int, dict[str, float]]:
    """Return texts a second of each model by batch size, with one thread a batch and two batches at once."""
    some = [texts[number * len(texts) // TRIAL_TEXTS] for number in range(TRIAL_TEXTS)]
    models = {name: FullDepth(str(folder), str(export), name, 1) for name in FILES}
    speed: dict[int, dict[str, float]] = {}
    with ThreadPoolExecutor(2) as pool:
        for size in SIZES:
            times: dict[str, list[float]] = {name: [] for name in FILES}
            for trial in range(TRIALS + 1):
                for name, model in models.items():
                    rows = sorted((model.tokens(text) for text in some), key=lambda row: len(row["input_ids"]))
                    parts = [rows[start : start + size] for start in range(0, len(rows), size)]
                    begin = time.perf_counter()
                    list(pool.map(model.probabilities, parts))
                    if trial:
                        times[name].append(time.perf_counter() - begin)
            speed[size] = {name: len(some) / median(values) for name, values in times.items()}
    return speed
