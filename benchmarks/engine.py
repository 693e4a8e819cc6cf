"""The graph that leaves early against the plain model and against loops in torch, on the clock.

    python benchmarks/engine.py --data ../shared/data/sst2
    python benchmarks/engine.py --only base-32
    taskset -c 0 python benchmarks/engine.py --only sst2 --runs runs/engine-one --name engine_one   # on one core

Needs the model that `sst2.py` trains (`--model`). Exports lie under `runs/engine` and are made once; so does each piece
of the results, and a run goes on where it was stopped. Writes `benchmarks/results/engine.json` and `engine.md` of the
pieces that are there. `--only` takes the beginning of a piece's name, and measures it anew.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import BertConfig, set_seed

from engine_report import page
from machine import provenance
from offramp.bench.baselines import exported, full_depth, plain_exports
from offramp.bench.compare import run_benchmark
from offramp.bench.timer import Run, SpeedupRange, Times, median, time_batches
from offramp.calibration.calibrate import calibrate
from offramp.data.batching import collate, encode, length_sorted
from offramp.data.columns import Columns
from offramp.data.examples import read_examples
from offramp.inference.export import export
from offramp.inference.load_engine import load_engine
from offramp.inference.record import record
from offramp.model.hub import load_tokenizer
from offramp.model.loading import load_model
from offramp.model.modeling import MultiExitModel
from offramp.policies.fitting import fit_lines
from offramp.policies.registry import load_policy, policy_to_dict
from offramp.policies.replay import scores
from offramp.types.graph_file import GRAPHS, WEIGHTS
from offramp.types.operating_point import OperatingPoint, Target
from offramp.types.outputs import Answers
from offramp.types.trace import Trace

NAMES, COLUMNS, MAX_LENGTH = ("negative", "positive"), Columns(text="sentence1", label="label"), 128
POLICY = load_policy("max-prob")  # with a threshold for each exit, see `sst2_points`
TARGETS = {
    "lose at most 1 %": Target(max_drop=0.01),
    "25 % saved": Target(speedup=4 / 3),
    "50 % saved": Target(speedup=2),
    "75 % saved": Target(speedup=4),
}
SAVINGS = {"25 % saved": 0.25, "50 % saved": 0.5, "75 % saved": 0.75}
HALF = "50 % saved"
SIZES, LENGTHS = (1, 8, 32), (32, 128)
ROWS = {32: {1: 48, 8: 96, 32: 192}, 128: {1: 16, 8: 48, 32: 96}}
"""Of a BERT-base, by tokens and batch size."""
STARTS, SWITCHES = 7, 5
RESULTS = Path(__file__).parent / "results"
Rows = list[dict[str, Any]]


def sst2(source: Path, runs: Path) -> Path:
    """The model that `sst2.py` trained, exported."""
    folder = runs / "sst2"
    if not folder.exists():
        shutil.copytree(source, folder)
    return with_graphs(folder, None)


def base(runs: Path) -> Path:
    """A BERT-base with random weights and twelve exits, exported."""
    folder = runs / "base"
    if not (folder / "model.safetensors").exists():
        set_seed(0)
        MultiExitModel.from_backbone(BertConfig(), 2, pooling="mean").save_pretrained(folder)
    return with_graphs(folder, random_rows(64, 32))


def with_graphs(folder: Path, checked_on: Rows | None) -> Path:
    """The folder, with all exports, ours and the plain model's."""
    for engine, file in GRAPHS.items():
        if not (folder / (file + WEIGHTS)).exists():
            export(folder, POLICY, policies=["patience"], int8=engine == "onnx-int8", dataset=checked_on)
    plain_exports(load_model(folder), folder)
    return folder


def random_rows(count: int, tokens: int) -> Rows:
    """Random tokens, all rows of one length."""
    ids = torch.randint(1000, 20000, (count, tokens), generator=torch.Generator().manual_seed(tokens)).tolist()
    return [{"input_ids": row, "attention_mask": [1] * tokens, "token_type_ids": [0] * tokens} for row in ids]


@cache
def halves(folder: Path, sentences: Path) -> tuple[Tensor, Tensor]:
    """Numbers of the sentences that points are chosen on, and of those reported."""
    count = len(read_examples(str(sentences), COLUMNS, split="validation", label_names=NAMES))
    chosen, reported = torch.randperm(count, generator=torch.Generator().manual_seed(0)).chunk(2)
    return chosen, reported


def sst2_points(folder: Path, sentences: Path, engine: str) -> dict[str, OperatingPoint]:
    """Chosen on one half, of a trace of the same engine."""
    trace = record(folder, sentences, engine, columns=COLUMNS).take(halves(folder, sentences)[0])
    policy = load_policy(policy_to_dict(POLICY), **fit_lines(POLICY, trace))
    return {name: calibrate(trace, policy, target) for name, target in TARGETS.items()}


def sst2_rows(folder: Path, sentences: Path) -> tuple[Rows, Tensor]:
    """The other half, as tokens, with labels."""
    examples = read_examples(str(sentences), COLUMNS, split="validation", label_names=NAMES)
    tokens = encode(load_tokenizer(folder), examples.texts, MAX_LENGTH)
    reported = halves(folder, sentences)[1].tolist()
    return [dict(tokens[number]) for number in reported], torch.tensor(examples.labels)[reported]


def sst2_piece(folder: Path, sentences: Path, size: int, rounds: int) -> dict[str, Any]:
    """Real texts: every target, both graphs, all rivals."""
    engines = {engine: load_engine(folder, engine) for engine in GRAPHS}
    points = {engine: sst2_points(folder, sentences, engine) for engine in GRAPHS}
    rows, labels = sst2_rows(folder, sentences)
    model = load_model(folder)
    rivals = full_depth(model, folder, collate(rows[:2], model.config.pad_token_id))
    results = run_benchmark(engines, points, rivals, rows, labels, size, rounds)
    return {"rows": len(rows), "results": [asdict(entry) for entry in results]}


def base_piece(folder: Path, tokens: int, size: int, rounds: int) -> dict[str, Any]:
    """Random weights and tokens: exits at chosen depths, both graphs, the plain exports."""
    engines = {engine: load_engine(folder, engine) for engine in GRAPHS}
    rows = random_rows(ROWS[tokens][size], tokens)
    points = {}
    for name, engine in engines.items():
        trace = record(engine, rows, batch_size=size)
        points[name] = {label: spread(trace, saving) for label, saving in SAVINGS.items()}
    results = run_benchmark(engines, points, exported(load_model(folder), folder), rows, None, size, rounds)
    return {"rows": len(rows), "results": [asdict(entry) for entry in results]}


def spread(trace: Trace, saving: float) -> OperatingPoint:
    """One threshold an exit, such that a share of the layers is saved and all exits are used.

    The share that leaves at layer k falls or rises by the same factor from layer to layer: of all ways to reach a mean
    the one with the largest entropy.
    """
    score, count = scores(POLICY, trace), len(trace)  # (L, N)
    leaving = (
        (shares(trace.depth, (1 - saving) * trace.depth).cumsum(dim=0) * count)
        .round()
        .long()
        .diff(prepend=torch.zeros(1, dtype=torch.int64))
    )  # (L,) rows
    here, thresholds = torch.arange(count), []
    for exit in range(trace.depth - 1):
        ranked, order = score[exit, here].sort(descending=True)
        padded = torch.cat((torch.tensor([math.inf]), ranked, torch.tensor([-math.inf])))
        gone = int(leaving[exit])
        thresholds.append(((padded[gone] + padded[gone + 1]) / 2).item() if len(here) else math.inf)
        here = here[order[gone:]]
    return OperatingPoint(policy_to_dict(POLICY), tuple(thresholds))


def shares(depth: int, mean: float) -> Tensor:
    """Probabilities (L,) of layers 1..L in a geometric row with that mean."""
    layers = torch.arange(1, depth + 1, dtype=torch.float64)
    low, high = -5.0, 5.0
    for _ in range(60):
        middle = (low + high) / 2
        row = (layers * middle).softmax(dim=0)
        low, high = (middle, high) if (row * layers).sum() < mean else (low, middle)
    return row


@torch.no_grad()
def papers_loop(model: MultiExitModel, point: OperatingPoint, inputs: dict[str, Tensor]) -> Answers:
    """One text at a time, one `if` a layer, as the papers' code has it."""
    encoder, mask = model.backbone, inputs["attention_mask"]
    hidden = encoder.embeddings(inputs["input_ids"], inputs.get("token_type_ids"))
    hide = (1.0 - mask[:, None, None, :].float()) * torch.finfo(torch.float32).min
    for number, layer in enumerate(encoder.encoder.layer):
        hidden = layer(hidden, hide)
        logits = model.heads(number, hidden, mask)
        if number == len(point.thresholds) or logits.softmax(dim=-1).max() >= point.thresholds[number]:
            break
    return Answers(logits, torch.tensor([number + 1]), torch.zeros(1, dtype=torch.bool))


def loops_piece(folder: Path, rows: Rows, points: Mapping[str, OperatingPoint], rounds: int) -> dict[str, Any]:
    """The same weights and the same exits: the papers' loop, ours in torch, the graphs."""
    model = load_model(folder)
    runs: dict[str, Run] = {"loop in torch": partial(load_engine(folder, "torch").answer, point=points["onnx"])}
    for engine in GRAPHS:
        runs[f"graph, {engine}"] = partial(load_engine(folder, engine).answer, point=points[engine])
    figures: dict[str, Any] = {}
    for size in (1, 32):
        batches = [
            collate([rows[number] for number in numbers], model.config.pad_token_id)
            for numbers in length_sorted(rows, size)
        ]
        alone: dict[str, Run] = {"one `if` a layer": partial(papers_loop, model, points["onnx"])} if size == 1 else {}
        times, answers = time_batches({**alone, **runs}, batches, rounds)
        slowest = next(iter(times.values()))
        figures[str(size)] = {name: loop_row(slowest, entry, answers[name]) for name, entry in times.items()}
    return {"rows": len(rows), "sizes": figures}


def loop_row(slowest: Times, times: Times, answers: Sequence[Any]) -> dict[str, Any]:
    """Of one way to run: the mean exit, milliseconds a text, how many times as fast as the first one."""
    exits = torch.cat([entry.exit_layers for entry in answers])
    ms = 1000 / times.per_second
    return {"mean_exit": exits.double().mean().item(), "ms": ms, "faster": asdict(SpeedupRange.of(slowest, times))}


def start(kind: str, file: Path) -> tuple[float, float]:
    """Seconds from nothing to the first answer of a fresh process, and the MiB that it holds then."""
    command = [sys.executable, str(Path(__file__).parent / "alone.py"), kind, str(file)]
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        seconds = time.perf_counter() - began
        return seconds, float(process.stdout.readline())


def cold_piece(folders: Mapping[str, Path]) -> dict[str, Any]:
    """Cold starts in turn, with file size and memory."""
    files = {
        (model, engine, kind): folder / f"{'plain-' if kind == 'plain' else ''}{file}"
        for model, folder in folders.items()
        for engine, file in GRAPHS.items()
        for kind in ("plain", "graph")
    }
    some = next(iter(files.values()))
    results: dict[Any, list[tuple[float, float]]] = {key: [] for key in [*files, None]}
    for number in range(STARTS + 1):
        for key in results:
            samples = start("nothing", some) if key is None else start(key[2], files[key])
            if number:
                results[key].append(samples)
    figures = []
    for (model, engine, kind), file in files.items():
        figures.append({"model": model, "engine": engine, "kind": kind, "mb": size(file) / 1e6})
        figures[-1] |= seconds_and_memory(results[model, engine, kind])
    return {"starts": STARTS, "nothing": seconds_and_memory(results[None]), "files": figures}


def size(file: Path) -> int:
    """Bytes of a graph, with the weights that lie beside it."""
    beside = file.with_name(file.name + WEIGHTS)
    return file.stat().st_size + (beside.stat().st_size if beside.exists() else 0)


def seconds_and_memory(samples: Sequence[tuple[float, float]]) -> dict[str, float]:
    """Medians, and the range of the seconds."""
    seconds = [entry for entry, _ in samples]
    return {
        "seconds": median(seconds),
        "low": min(seconds),
        "high": max(seconds),
        "mib": median([memory for _, memory in samples]),
    }


def switch_piece(folders: Mapping[str, Path]) -> dict[str, Any]:
    """Another policy for an exported file, from the command line."""
    figures: dict[str, Any] = {}
    for model, folder in folders.items():
        for engine in GRAPHS:
            seconds = []
            for number in range(SWITCHES + 1):
                for policy in ("patience", POLICY):
                    name = policy if isinstance(policy, str) else policy_to_dict(policy)["name"]
                    option = ["--int8"] if engine == "onnx-int8" else []
                    command = [sys.executable, "-m", "offramp", "export", str(folder), "--policy", name, *option]
                    began = time.perf_counter()
                    subprocess.run(command, check=True, capture_output=True)
                    if number:
                        seconds.append(time.perf_counter() - began)
            figures[f"{model}, {engine}"] = {"seconds": median(seconds), "low": min(seconds), "high": max(seconds)}
    return figures


def pieces(options: argparse.Namespace) -> dict[str, Callable[[], dict[str, Any]]]:
    """What there is to measure, by name."""
    sentences = options.data / "validation_sentences.jsonl.gz"

    def both() -> dict[str, Path]:
        return {"SST-2": sst2(options.model, options.runs), "BERT-base": base(options.runs)}

    def sst2_loops() -> dict[str, Any]:
        folder = sst2(options.model, options.runs)
        points = {engine: sst2_points(folder, sentences, engine)[HALF] for engine in GRAPHS}
        return loops_piece(folder, sst2_rows(folder, sentences)[0], points, options.rounds)

    def base_loops() -> dict[str, Any]:
        folder, rows = base(options.runs), random_rows(ROWS[32][8], 32)
        traces = {engine: record(folder, rows, engine) for engine in GRAPHS}
        points = {engine: spread(trace, SAVINGS[HALF]) for engine, trace in traces.items()}
        return loops_piece(folder, rows, points, options.rounds)

    results: dict[str, Callable[[], dict[str, Any]]] = {}
    for size in SIZES:
        results[f"sst2-{size}"] = lambda size=size: sst2_piece(
            sst2(options.model, options.runs), sentences, size, options.rounds
        )
    for tokens in LENGTHS:
        for size in SIZES:
            results[f"base-{tokens}-{size}"] = lambda tokens=tokens, size=size: base_piece(
                base(options.runs), tokens, size, options.rounds
            )
    return results | {
        "loops-sst2": sst2_loops,
        "loops-base": base_loops,
        "cold": lambda: cold_piece(both()),
        "switch": lambda: switch_piece(both()),
    }


def main() -> None:
    """Measure what is missing, write what is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/sst2"))
    parser.add_argument("--model", type=Path, default=Path("runs/sst2/mean"), help="what sst2.py trained")
    parser.add_argument("--runs", type=Path, default=Path("runs/engine"), help="where exports and pieces go")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--name", default="engine", help="of the results' files")
    parser.add_argument("--only", metavar="PIECE", help="the beginning of a piece's name: measure that, anew")
    options = parser.parse_args()
    options.runs.mkdir(parents=True, exist_ok=True)
    all_pieces = pieces(options)
    results = {}
    for name, measured in all_pieces.items():
        file = options.runs / f"{name}.json"
        if (not options.only and not file.exists()) or (options.only and name.startswith(options.only)):
            print(name, flush=True)
            file.write_text(json.dumps({"about": provenance(), "rounds": options.rounds, **measured()}))
        if file.exists():
            results[name] = json.loads(file.read_text())
    (RESULTS / f"{options.name}.json").write_text(json.dumps(results, indent=2) + "\n")
    (RESULTS / f"{options.name}.md").write_text(page(results))
    print(page(results))


if __name__ == "__main__":
    main()
