"""How long does `offramp predict` take to its first answer, and in how much memory, against an older build?

    git worktree add --detach ../offramp-old 657527d
    python benchmarks/cold_start.py --model runs/speed/clinc150-0 --old ../offramp-old

A model that `offramp export --int8` has exported answers one text, as a process of its own: by this build, by the older
one, and the plain model, which is the same encoder with its last exit alone in the same int8, by a script that imports
onnxruntime, tokenizers and NumPy only. The three take turns on one core, with one thread; files are in memory. The time
runs from the start of the process to the first line of its output, the memory is the largest that the process had.

Writes `benchmarks/results/cold_start.json` and `.md`. A minute to export the plain model, which is taken up again from
`--runs`, and half a minute to measure on a core that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROUNDS, TEXT = 7, "what is my account balance"
RESULTS = Path(__file__).parent / "results"
BARE = """
import json, sys
import numpy as np
import onnxruntime
from tokenizers import Tokenizer

folder, graph, names, file = sys.argv[1:]
tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
encoding = tokenizer.encode(open(file).read().strip())
values = {"input_ids": encoding.ids, "attention_mask": encoding.attention_mask, "token_type_ids": encoding.type_ids}
logits = session.run(None, {one.name: np.array([values[one.name]]) for one in session.get_inputs()})[0][0]
print(json.dumps({"label": json.loads(names)[str(logits.argmax())]}), flush=True)
"""


@dataclass(frozen=True)
class Start:
    """A process that answers one text.

    Attributes:
        name: of the row in the results.
        command: what runs.
        source: the folder of offramp's source; None where it is not used.
    """

    name: str
    command: tuple[str, ...]
    source: Path | None = None

    def run(self) -> tuple[float, float, float, dict[str, Any]]:
        """Return seconds to the first line, seconds of the processor, the most memory in MiB, and the answer.

        Raises:
            SystemExit: the process failed.
        """
        source = {} if self.source is None else {"PYTHONPATH": str(self.source.resolve())}
        environment = {**os.environ, **source, "OMP_NUM_THREADS": "1"}
        began = time.perf_counter()
        process = subprocess.Popen([sys.executable, *self.command], env=environment, stdout=subprocess.PIPE)
        assert process.stdout is not None
        line = process.stdout.readline()
        seconds = time.perf_counter() - began
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode or not line:
            raise SystemExit(f"{self.name}: {' '.join(self.command)} ended with {process.returncode}")
        return seconds, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024, json.loads(line)


def export_plain(folder: Path, to: Path) -> None:
    """Write the plain model of a folder in int8, its weights in a file beside it."""
    import onnx
    from onnx.utils import Extractor

    from offramp.bench.baselines import exit_layers, export_exits, output_at
    from offramp.inference.onnx.quantize import exact_int8
    from offramp.model.activation_ranges import EMBEDDING, ActivationRanges
    from offramp.model.loading import load_model

    model = load_model(folder)
    graph, layers = export_exits(model), exit_layers(model)
    modules = {name: name for name, _ in model.backbone.named_modules()}
    quantized = exact_int8(ActivationRanges.load(folder))(graph, (EMBEDDING, *layers), modules)
    inputs = [value.name for value in quantized.graph.input]
    part = Extractor(quantized).extract_model(inputs, [output_at(layers[-1])])
    onnx.save(part, to, save_as_external_data=True, location=f"{to.name}.data")


def measure(starts: Sequence[Start]) -> dict[str, Any]:
    """Run the processes in turn."""
    figures: dict[str, Any] = {}
    for start in starts:  # not timed: brings files into memory
        figures[start.name] = {"answer": start.run()[3], "seconds": [], "busy": [], "mebibytes": []}
    for number in range(ROUNDS):
        for start in starts if number % 2 else reversed(starts):
            for key, value in zip(("seconds", "busy", "mebibytes"), start.run()[:3], strict=True):
                figures[start.name][key].append(value)
        print(number, {name: f"{figure['seconds'][-1]:.2f} s" for name, figure in figures.items()}, flush=True)
    return figures


def ratios(results: dict[str, Any], key: str, one: str, other: str) -> str:
    """Return the median of the rounds' ratios of two processes, with their spread."""
    figures = results["starts"]
    values = [above / below for above, below in zip(figures[one][key], figures[other][key], strict=True)]
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def page(results: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    from machine import as_lines

    about = results["about"]
    lines = [
        "# The first answer of `offramp predict`, against an older build",
        "",
        f"{as_lines(about)} Builds: {about['commits']}. Model: {about['model']}. {ROUNDS} rounds in turn on one core.",
        "",
        f"- Time of the older build: {ratios(results, 'seconds', 'old', 'new')} times this build's.",
        f"- Time of this build: {ratios(results, 'seconds', 'new', 'plain')} times that of the bare script.",
        f"- Memory of this build: {ratios(results, 'mebibytes', 'new', 'plain')} times that of the bare script.",
        "",
        "| process | to the first answer, s | processor, s | most memory, MiB | answer |",
        "|---|---|---|---|---|",
    ]
    for name, figure in results["starts"].items():
        cells = [
            f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"
            for values, digits in ((figure["seconds"], 2), (figure["busy"], 2), (figure["mebibytes"], 0))
        ]
        lines.append(f"| {name} | {' | '.join(cells)} | {json.dumps(figure['answer'])} |")
    return "\n".join([*lines, ""])


def commit(checkout: Path) -> str:
    """Return the commit of a checkout."""
    command = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def main() -> None:
    """Export the plain model if it is missing, measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a folder that `offramp export --int8` has exported")
    parser.add_argument("--old", type=Path, required=True, help="a checkout of the older build")
    parser.add_argument("--old-model", type=Path, help="a folder for the older build, where it cannot read --model")
    parser.add_argument("--runs", type=Path, default=Path("runs/cold_start"), help="where the plain model goes")
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)), help="the core that computes")
    options = parser.parse_args()
    options.runs.mkdir(parents=True, exist_ok=True)
    current, graph, text = Path(__file__).parents[1], options.runs / "plain.int8.onnx", options.runs / "one.txt"
    text.write_text(TEXT + "\n")
    if not graph.exists():
        export = multiprocessing.get_context("spawn").Process(target=export_plain, args=(options.model, graph))
        export.start()
        export.join()
    names = json.dumps(json.loads((options.model / "config.json").read_text())["id2label"])
    predict = ("-m", "offramp", "predict")
    starts = (
        Start("old", (*predict, str(options.old_model or options.model), str(text)), options.old / "src"),
        Start("new", (*predict, str(options.model), str(text)), current / "src"),
        Start("plain", ("-c", BARE, str(options.model), str(graph), names, str(text))),
    )
    os.sched_setaffinity(0, {options.core})
    figures = measure(starts)
    from machine import provenance  # and with it torch: a process has the memory of the one that starts it, at first

    about = {**provenance(), "commits": {"old": commit(options.old), "new": commit(current)}}
    about |= {"model": options.model.name, "core": options.core}
    results = {"about": about, "starts": figures}
    (RESULTS / "cold_start.json").write_text(json.dumps(results, indent=1) + "\n")
    (RESULTS / "cold_start.md").write_text(page(results))


if __name__ == "__main__":
    main()
