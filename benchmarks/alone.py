"""One answer in a process of its own, without torch; `engine.py` times it and reads its memory.

    python benchmarks/alone.py graph FILE

Prints a line at the first answer, then the MiB that the process holds.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np

TOKENS = 16


def main() -> None:
    """Load, answer one text at full depth, tell."""
    kind, file = sys.argv[1:]
    ids = np.arange(1000, 1000 + TOKENS).reshape(1, TOKENS)
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    if kind == "graph":
        from offramp.inference.onnx.session import OnnxSession

        graph = OnnxSession.load(file)
        graph.run(inputs, math.inf)
    else:
        import onnxruntime

        if kind == "plain":
            options = {"disabled_optimizers": ["SkipLayerNormFusion"]}
            session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"], **options)
            session.run(None, {entry.name: inputs[entry.name] for entry in session.get_inputs()})
    print("answered", flush=True)
    lines = Path("/proc/self/status").read_text().splitlines()
    print(next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024)


if __name__ == "__main__":
    main()
