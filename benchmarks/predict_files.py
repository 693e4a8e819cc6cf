"""How many texts of a file does `offramp predict` answer a second, against an older build with a model of its own?

    git worktree add --detach ../offramp-old 495fd11
    python benchmarks/predict_files.py --data ../shared/data --old ../offramp-old

Two tasks, the default encoder. Each build trains its model on the same rows in the same recipe (that of
`lexical_models.py`), exports it in int8 and calibrates it for at most 1 % lost, as it tells its users to; all other
options are its defaults. So the newer model has an exit before the first layer and reads the exits that pay on this
machine: prepare it where nothing else runs. `--models` has finished models of `speed_models.py`, whose recipe is the
same, for the newer build: their weights are taken, nothing else. One half of the rows that nothing was trained on
chooses thresholds, the other half, repeated up to ROWS, is answered: whole processes from file to file, the builds in
turn, with the threads that each takes by itself. A run over one text is subtracted for the steady state.

Models and results of a task lie under `--runs`; what is there is taken up again. Remove `TASK-new.ready` to export and
calibrate that model anew, its folder too to train it anew, and `TASK-measured.json` to measure anew. Writes
`benchmarks/results/predict_files.json` and `.md`. A quarter of an hour to train on two cores, five minutes to measure
on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lexical_models import Cell, take
from machine import as_lines, provenance
from offramp.data.examples import Examples

TASKS = ("sst2", "clinc150")
ROWS, ROUNDS, SEED, MAX_DROP = 20_000, 3, 0, 0.01
BATCH = 32
"""Of both builds' `predict`; the newer one times its exits in such batches."""
WEIGHTS = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "activation_ranges.json")
"""Files of a finished model, without its graphs and operating points."""
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Files:
    """A task's rows in files, which both builds read."""

    cell: Cell

    def path(self, name: str) -> Path:
        """Return a file of the task."""
        return self.cell.runs / f"{self.cell.task}-{name}"

    def halves(self) -> tuple[Examples, Examples]:
        """Return the rows that choose thresholds and the rows that are answered, two random halves."""
        held_out = self.cell.examples(self.cell.setting.split)
        order = list(range(len(held_out)))
        random.Random(SEED).shuffle(order)
        middle = len(order) // 2
        return take(held_out, sorted(order[:middle])), take(held_out, sorted(order[middle:]))

    def write(self) -> None:
        """Write the rows to train on, those that choose, and the texts to answer: all, each once, and the first."""
        choosing, answered = self.halves()
        for name, examples in (("train.jsonl", self.cell.examples("train")), ("choose.jsonl", choosing)):
            rows = zip(examples.texts, labels(examples), strict=True)
            lines = [json.dumps({"text": text, "label": label}) for text, label in rows]
            self.path(name).write_text("\n".join(lines) + "\n")
        texts = [str(text) for text in answered.texts]
        repeated = [texts[row % len(texts)] for row in range(ROWS)]
        for name, some in (("all.txt", repeated), ("once.txt", texts), ("one.txt", texts[:1])):
            self.path(name).write_text("\n".join(some) + "\n")


def labels(examples: Examples) -> list[str]:
    """Return the name of every row's class."""
    return [examples.label_names[int(label)] for label in examples.labels]  # type: ignore[arg-type]


@dataclass(frozen=True)
class Build:
    """A checkout of offramp, and the model of a task that it trained."""

    name: str
    checkout: Path
    files: Files
    weights: Path | None = None  # a finished model's folder, in place of training

    @property
    def folder(self) -> Path:
        """Return the model's folder."""
        return self.files.path(self.name)

    def run(self, *arguments: object, environment: Mapping[str, str] = os.environ) -> None:
        """Run a command of this build to its end.

        Raises:
            SystemExit: it failed.
        """
        source = {"PYTHONPATH": str((self.checkout / "src").resolve())}
        command = [sys.executable, "-m", "offramp", *map(str, arguments)]
        done = subprocess.run(
            command, env={**environment, **source}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        if done.returncode:
            raise SystemExit(f"{self.name}: {' '.join(command)}\n{done.stderr}")

    def prepare(self) -> None:
        """Train, export and calibrate what is missing."""
        ready, choose = self.files.path(f"{self.name}.ready"), self.files.path("choose.jsonl")
        if ready.exists():
            return
        target = ("calibrate", self.folder, "--data", choose, "--max-drop", MAX_DROP)
        if self.weights is None:
            self.train(choose)
        else:
            self.folder.mkdir(exist_ok=True)
            for name in WEIGHTS:
                shutil.copyfile(self.weights / name, self.folder / name)
            self.run(*target)  # the exits that the graph holds, as training chooses them
        self.run("export", self.folder, "--int8")
        if self.name == "old":
            self.run(*target, "--engine", "onnx-int8")
        else:  # the exits that pay in batches, then a graph without the others
            self.run(*target, "--engine", "onnx-int8", "--batch-size", BATCH)
            self.run("export", self.folder, "--int8")
        ready.touch()

    def train(self, choose: Path) -> None:
        """Train the model, or go on where a run was stopped."""
        setting, unfinished = self.files.cell.setting, (self.folder / "checkpoints").exists()
        if unfinished or not (self.folder / "config.json").exists():
            sources = ("--train", self.files.path("train.jsonl"), "--validation", choose, "-o", self.folder)
            recipe = ("--epochs", setting.epochs, "--max-length", setting.max_length, "--bf16")
            self.run("train", *sources, *recipe, *(["--resume"] if unfinished else []))

    def predict(self, texts: str, *options: str) -> tuple[float, float, list[dict[str, Any]]]:
        """Answer a file; return seconds on the clock, seconds of the processor, and the answers."""
        out = self.files.path(f"{self.name}.answers.jsonl")
        environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
        began, busy = time.perf_counter(), children_seconds()
        self.run("predict", self.folder, self.files.path(texts), "-o", out, *options, environment=environment)
        seconds, busy = time.perf_counter() - began, children_seconds() - busy
        return seconds, busy, [json.loads(line) for line in out.read_text().splitlines()]


def commit(checkout: Path) -> str:
    """Return the commit of a checkout."""
    command = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def children_seconds() -> float:
    """Return the seconds that child processes have computed so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measure(builds: Sequence[Build], answered: Examples) -> dict[str, Any]:
    """Time the builds in turn, and score their answers."""
    names = labels(answered)
    figures: dict[str, Any] = {}
    for build in builds:  # not timed: brings files into memory, and scores full depth
        _, _, full = build.predict("once.txt", "--operating-point", "full")
        figures[build.name] = {"full_score": score(full, names), "seconds": [], "busy": [], "one_text": []}
    for number in range(ROUNDS):
        for build in builds if number % 2 else reversed(builds):
            figure = figures[build.name]
            one, _, _ = build.predict("one.txt")
            seconds, busy, answers = build.predict("all.txt")
            assert len(answers) == ROWS
            for key, value in (("one_text", one), ("seconds", seconds), ("busy", busy)):
                figure[key].append(value)
            once = answers[: len(names)]
            figure["score"] = score(once, names)
            figure["mean_exit"] = statistics.mean(answer["exit_layer"] for answer in once)
            print(build.name, f"{one:.2f} {seconds:.2f} s, accuracy {figure['score']:.4f}", flush=True)
    return {"rows": len(names), "builds": figures}


def score(answers: Sequence[dict[str, Any]], names: Sequence[str]) -> float:
    """Return the accuracy."""
    return statistics.mean(answer.get("label") == name for answer, name in zip(answers, names, strict=True))


def ratios(task: dict[str, Any]) -> tuple[list[float], list[float]]:
    """Return how many times the older build's texts a second the newer one answers: whole process, and steady state."""
    old, new = (task["builds"][name] for name in ("old", "new"))
    whole = [before / after for before, after in zip(old["seconds"], new["seconds"], strict=True)]
    steady = [before / after for before, after in zip(steady_seconds(old), steady_seconds(new), strict=True)]
    return whole, steady


def steady_seconds(figure: dict[str, Any]) -> list[float]:
    """Return the seconds of each round without those of a run over one text."""
    return [whole - one for whole, one in zip(figure["seconds"], figure["one_text"], strict=True)]


def page(results: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    lines = ["# `offramp predict` on a file, against an older build", ""]
    for task, result in results.items():
        whole, steady = ratios(result)
        spread = f"{statistics.median(whole):.2f} times ({min(whole):.2f} to {max(whole):.2f})"
        lines += [
            f"## {task}: {spread} the texts a second, in the steady state {statistics.median(steady):.2f} times",
            "",
            f"{as_lines(result['about'])} Builds: {result['about']['commits']}.",
            f"{ROWS:,} texts, {result['rows']:,} different ones; {len(whole)} rounds, medians.",
            "",
            "| build | texts a second | steady state | one text, s | processor, s | accuracy | of full depth | lost |"
            " mean exit layer |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for name, figure in result["builds"].items():
            middle = {key: statistics.median(figure[key]) for key in ("seconds", "one_text", "busy")}
            steady_rate = ROWS / statistics.median(steady_seconds(figure))
            lost = 1 - figure["score"] / figure["full_score"]
            lines.append(
                f"| {name} | {ROWS / middle['seconds']:,.0f} | {steady_rate:,.0f} | {middle['one_text']:.2f} "
                f"| {middle['busy']:.1f} | {figure['score']:.4f} | {figure['full_score']:.4f} | {lost:.1%} "
                f"| {figure['mean_exit']:.2f} |"
            )
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Make and measure what is missing, write what is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--old", type=Path, required=True, help="a checkout of the older build")
    parser.add_argument("--runs", type=Path, default=Path("runs/predict_files"), help="where models and results go")
    parser.add_argument("--models", type=Path, help="finished models of speed_models.py, for the newer build")
    parser.add_argument("--only", choices=TASKS, help="one task")
    options = parser.parse_args()
    options.runs.mkdir(parents=True, exist_ok=True)
    current = Path(__file__).parents[1]
    for task in [options.only] if options.only else TASKS:
        files = Files(Cell(task, SEED, options.data, options.runs))
        weights = options.models and options.models / f"{task}-{SEED}"
        builds = (Build("old", options.old, files), Build("new", current, files, weights))
        files.write()
        for build in builds:
            build.prepare()
        if not files.path("measured.json").exists():
            about = {**provenance(), "commits": {build.name: commit(build.checkout) for build in builds}}
            result = {"about": about, **measure(builds, files.halves()[1])}
            files.path("measured.json").write_text(json.dumps(result, indent=1) + "\n")
    paths = {task: options.runs / f"{task}-measured.json" for task in TASKS}
    results = {task: json.loads(path.read_text()) for task, path in paths.items() if path.exists()}
    (RESULTS / "predict_files.json").write_text(json.dumps(results, indent=1) + "\n")
    (RESULTS / "predict_files.md").write_text(page(results))


if __name__ == "__main__":
    main()
