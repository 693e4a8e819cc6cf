"""Time the fingerprint of a model's weights, as it is read whenever a graph or operating points are loaded.

    python benchmarks/fingerprint.py

Prints the median time in milliseconds, with the files in the system's cache, for models of about 90 and 440 MB.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from offramp.types.model_content import ModelContent

ROUNDS = 9
MODELS = {"6 layers of 384": (6, 384), "12 layers of 768": (12, 768)}
VOCABULARY, LABELS = 30522, 20


def write_model(folder: Path, layers: int, width: int) -> None:
    """Write weights of BERT's shapes, and the configuration that names the exits."""
    random = np.random.default_rng(0)
    shapes = {"backbone.embeddings.word_embeddings.weight": (VOCABULARY, width)}
    for layer in range(layers):
        name = f"backbone.encoder.layer.{layer}"
        for part in ("query", "key", "value", "output"):
            shapes |= {f"{name}.{part}.weight": (width, width), f"{name}.{part}.bias": (width,)}
        shapes |= {f"{name}.up.weight": (4 * width, width), f"{name}.up.bias": (4 * width,)}
        shapes |= {f"{name}.down.weight": (width, 4 * width), f"{name}.down.bias": (width,)}
        shapes |= {f"{name}.norm{number}.{part}": (width,) for number in (1, 2) for part in ("weight", "bias")}
        shapes[f"heads.classifiers.{layer}.weight"] = (LABELS, width)
    tensors = {name: random.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"exit_layers": list(range(1, layers + 1))}))


def milliseconds(folder: Path, whole: bool) -> float:
    """Return the median time of a fingerprint."""
    times = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        ModelContent(folder).weights(whole=whole)
        times.append(1000 * (time.perf_counter() - started))
    return statistics.median(times)


def main() -> None:
    """Print a line for each model."""
    for name, (layers, width) in MODELS.items():
        with tempfile.TemporaryDirectory() as folder:
            write_model(Path(folder), layers, width)
            size = (Path(folder) / "model.safetensors").stat().st_size / 1e6
            sample, whole = (milliseconds(Path(folder), whole) for whole in (False, True))
        print(f"{name}, {size:.0f} MB: {sample:.1f} ms from a sample, {whole:.0f} ms from every byte")


if __name__ == "__main__":
    main()
