"""How many int8 answers depend on the rest of the batch?

    make demo && .venv/bin/pip install -e ".[onnx]" && .venv/bin/offramp export offramp-demo --int8
    python benchmarks/int8_batches.py offramp-demo

Answers the test messages of the built-in sample at the model's operating point "default" one by one and 32 at a time,
and counts the labels and the exit layers that differ; likewise with the float32 graph where the folder has one. Writes
`benchmarks/results/int8_batches.json` and `.md`. A minute on one core.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from machine import as_lines, provenance
from offramp.data.columns import Columns
from offramp.data.examples import read_examples
from offramp.inference.predictor import Predictor
from offramp.types.graph_file import GRAPHS

RESULTS = Path(__file__).parent / "results"


def differing(folder: Path, engine: str, texts: list[str]) -> dict[str, float]:
    """The shares of labels and exit layers that differ between batches of 1 and of 32."""
    predictor = Predictor.load(folder, engine)
    alone, together = (predictor(texts, batch_size=size) for size in (1, 32))
    pairs = list(zip(alone, together, strict=True))
    return {
        name: sum(one[name] != other[name] for one, other in pairs) / len(pairs) for name in ("label", "exit_layer")
    }


def main() -> None:
    """Count, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    examples = read_examples("helpdesk", Columns(text="text", label="intent"), split="test")
    engines = [name for name, file in GRAPHS.items() if (folder / file).exists()]
    found = {engine: differing(folder, engine, [str(text) for text in examples.texts]) for engine in engines}
    about = provenance()
    rows = [f"| {engine} | {share['label']:.1%} | {share['exit_layer']:.1%} |" for engine, share in found.items()]
    table = "\n".join(["| engine | labels that differ | exit layers that differ |", "|---|---|---|", *rows])
    head = (
        f"# Answers one by one and 32 at a time\n\n{len(examples)} messages, the demo's model at its default point.\n"
    )
    (RESULTS / "int8_batches.md").write_text(f"{head}{as_lines(about)}\n\n{table}\n")
    data = {"about": about, "rows": len(examples), "found": found}
    (RESULTS / "int8_batches.json").write_text(json.dumps(data, indent=2) + "\n")
    print(table)


if __name__ == "__main__":
    main()
