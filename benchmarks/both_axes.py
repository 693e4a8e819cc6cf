"""What do token exit, layer exit and both save on long texts, on the clock and in multiply-accumulates?

    OMP_NUM_THREADS=1 python benchmarks/both_axes.py --data ../shared/data

IMDB, texts cut to 256 tokens. The encoder of `lexical_models.py` (seed 0, six layers, 128 tokens) is trained on for one
epoch on other rows, once as it is and once with token exit, so that both know the lengths that they meet. Each of the
two runs at full depth, with an exit before the first layer, with exits behind the layers, and with both; each of these
is a folder and a graph of its own, without the exits that are not read, but for those behind the two layers that remove
tokens: the exporter needs them. One half of ROWS test rows chooses thresholds, from a trace of the engine that runs;
the other half reports. All take turns in ONNX Runtime, from text to answer, with one thread. Writes
`benchmarks/results/both_axes.json` and `.md`; takes up models, graphs and traces again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import set_seed

from lexical_models import Cell, take, train
from machine import as_lines, provenance
from offramp.bench.adaptive import adaptive, engine_loader
from offramp.bench.baselines import export_exits, in_onnx_runtime
from offramp.bench.contestant import Contestant, TextRun
from offramp.bench.settings import fastest_settings
from offramp.bench.texts import TextEncoder
from offramp.bench.timer import SpeedupRange, median, time_texts
from offramp.calibration.prepare import PreparedPolicy
from offramp.data.examples import Examples, subsample
from offramp.inference.export import export
from offramp.inference.record import record
from offramp.model.card import save_points
from offramp.model.flops import macs, plain_macs
from offramp.model.hub import load_config, load_tokenizer
from offramp.model.lexical.config import LexicalExit
from offramp.model.loading import load_model
from offramp.model.modeling import MultiExitModel
from offramp.model.token_exit.config import TokenExit
from offramp.policies.fitting import fit_default_policy
from offramp.policies.replay import replay
from offramp.training.fit import fit, fit_lexical_alone, remove_checkpoints, token_rows
from offramp.types.graph_file import GRAPHS
from offramp.types.operating_point import DEFAULT, OperatingPoint, Target
from offramp.types.trace import Trace

TOKENS, TRAIN, RANGE_ROWS = 256, 2000, 200
TOKEN_EXIT = TokenExit(keep_ratio={2: 0.7, 4: 0.7})
"""The mild schedule of `tokens.py`, which keeps the score."""
ROWS, TIMED, ROUNDS, SIZES = 2000, 64, 5, (1, 32)
ENGINES = {"onnx": "plain onnx", "onnx-int8": "plain exact int8"}
"""By name, with the contestant without exits."""
ALLOWED = Target(max_drop=0.01)
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class System:
    """A way to answer: whether tokens leave, and which exits there are besides the last one."""

    tokens_leave: bool
    behind_layers: bool
    lexical: bool

    @property
    def name(self) -> str:
        """Return what can leave."""
        parts = {"token exit": self.tokens_leave, "layer exit": self.behind_layers, "lexical exit": self.lexical}
        return ", ".join(name for name, there in parts.items() if there) or "full depth"

    def read(self, depth: int) -> list[int]:
        """Return the layer numbers of the exits that it reads."""
        return [0] * self.lexical + (list(range(1, depth + 1)) if self.behind_layers else [depth])

    def held(self, depth: int) -> list[int]:
        """Return the layers with an exit in its graph; one that removes tokens has one, because it must end a block."""
        if self.behind_layers:
            return list(range(1, depth + 1))
        return [*(TOKEN_EXIT.keep_ratio if self.tokens_leave else ()), depth]


SYSTEMS = [
    System(tokens, layers, lexical) for tokens in (False, True) for layers in (False, True) for lexical in (False, True)
]


@dataclass(frozen=True)
class Models:
    """The trained models, their graphs and traces, in a folder of the runs."""

    cell: Cell
    runs: Path

    @cached_property
    def rows(self) -> Examples:
        """Return the test rows: the first half chooses, the second reports."""
        return subsample(self.cell.examples("test"), ROWS)

    def trained(self, tokens_leave: bool) -> Path:
        """Return the folder of a model with exits behind all layers, which is made if it is missing.

        Where all tokens stay it has a lexical exit, too; it reads no layer, so the other model takes the same.
        """
        folder, cell = self.runs / ("tokens-leave" if tokens_leave else "tokens-stay"), self.cell
        if not (folder / "config.json").exists():
            train(cell)
            set_seed(cell.seed)
            tokenizer = load_tokenizer(cell.folder)
            tokenizer.model_max_length = TOKENS
            token_exit = TOKEN_EXIT if tokens_leave else None
            model = MultiExitModel.from_backbone(str(cell.folder), pooling="mean", token_exit=token_exit)
            rows = take(replace(cell, seed=1).examples("train"), list(range(TRAIN)))
            recipe = {"num_train_epochs": 1, "learning_rate": 5e-5, "bf16": True, "seed": cell.seed}
            fit(model, tokenizer, folder, rows, resume=True, save_strategy="steps", save_steps=20, **recipe)
        if not tokens_leave and load_config(folder).lexical is None:
            fit_lexical_alone(load_model(folder), load_tokenizer(folder), folder, cell.examples("train"))
            remove_checkpoints(folder)
        return folder

    def folder(self, system: System) -> Path:
        """Return the folder of a system with its graphs, which is made if it is missing."""
        whole, stay = self.trained(system.tokens_leave), load_model(self.trained(False))
        exits = "every" if system.behind_layers else "last"
        folder = self.runs / f"{whole.name}-{exits}{'-lexical' * system.lexical}"
        if not (folder / GRAPHS["onnx-int8"]).exists():
            tokenizer = load_tokenizer(whole)
            model = MultiExitModel.from_backbone(
                str(whole),
                pooling="mean",
                token_exit=TOKEN_EXIT if system.tokens_leave else None,
                exit_layers=system.held(stay.layers[-1]),
                lexical=LexicalExit() if system.lexical else None,
            )
            if system.lexical:
                model.lexical_exit, model.config.lexical = stay.lexical_exit, stay.config.lexical
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            if system == System(True, False, True):  # the graph has exits that the system does not read
                point = choose(self.trace(True, "onnx").select(system.read(stay.layers[-1])))
                assert point is not None
                save_points({DEFAULT: point}, folder)
            rows = token_rows(subsample(self.cell.examples("train"), RANGE_ROWS), tokenizer, TOKENS)
            export(folder, dataset=rows)
            export(folder, int8=True, dataset=rows)
        return folder

    def trace(self, tokens_leave: bool, engine: str) -> Trace:
        """Return an engine's trace of the rows, at all exits."""
        file = self.runs / f"tokens-{'leave' if tokens_leave else 'stay'}-{engine}.safetensors"
        if not file.exists():
            record(self.folder(System(tokens_leave, True, True)), self.rows, engine).save(file)
        return Trace.load(file)


def halves(trace: Trace) -> Sequence[Tensor]:
    """Return the numbers of the rows that choose, and of those that report."""
    return torch.arange(len(trace)).tensor_split(2)


def choose(trace: Trace) -> OperatingPoint | None:
    """Return the point for the exits of a trace, from the half that chooses; None with one exit."""
    if trace.depth == 1:
        return None
    return PreparedPolicy(*fit_default_policy(trace.take(halves(trace)[0]))).calibrate(ALLOWED, to_spare=True)


def figures(models: Models, system: System, engine: str) -> tuple[OperatingPoint | None, dict[str, Any]]:
    """Return a system's point in an engine, and what it keeps and takes on the rows that report."""
    whole, plain = models.trace(system.tokens_leave, engine), models.trace(False, engine)
    trace = whole.select(system.read(whole.layer_numbers[-1]))
    reporting = halves(trace)[1]
    point, reported = choose(trace), trace.take(reporting)
    answers = None if point is None else replay(reported, point.policy, point.thresholds)
    logits = reported.logits[-1] if answers is None else answers.logits
    exits = torch.full((len(reported),), reported.layer_numbers[-1]) if answers is None else answers.exit_layers
    assert reported.tokens is not None
    assert reported.labels is not None
    assert reported.layers is not None
    config = load_config(models.folder(replace(system, behind_layers=True, lexical=True)))
    taken = macs(config, reported.tokens, reported.layer_numbers)
    mine = taken.gather(0, torch.searchsorted(reported.layers, exits).unsqueeze(0)).sum()
    full = plain_macs(load_config(models.trained(False)), reported.tokens).sum()
    score, own = (share_right(values, reported.labels) for values in (logits, reported.logits[-1]))
    return point, {
        "score": score,
        "lost": 1 - score / share_right(plain.take(reporting).logits[-1], reported.labels),
        "lost_of_own": 1 - score / own,
        "mean_exit": exits.double().mean().item(),
        "before_layer_1": (exits == 0).double().mean().item(),
        "macs_ratio": (full / mine).item(),
        "tokens": reported.tokens.double().mean().item(),
    }


def share_right(logits: Tensor, labels: Tensor) -> float:
    """Return the accuracy of logits (N, C)."""
    return (logits.argmax(dim=-1) == labels).double().mean().item()


def contestants(models: Models, system: System, engine: str, point: OperatingPoint | None) -> list[Contestant]:
    """Return a system as a contestant; without exits as a plain graph, with and without fused norms."""
    folder = models.folder(system)
    tokenizer = load_tokenizer(folder)
    if system != SYSTEMS[0]:
        return adaptive(engine, engine_loader(folder, engine), tokenizer, {system.name: point})
    model = load_model(folder)
    encoder = TextEncoder(tokenizer, model.config)
    rows = encoder.encode(subsample(models.cell.examples("train"), RANGE_ROWS).texts)
    runtimes = in_onnx_runtime(export_exits(model), model, rows)
    depth = model.config.exit_layers[-1]
    return [one.at(depth).contestant(encoder) for one in runtimes if one.name.startswith(ENGINES[engine])]


def race(models: Models, engine: str) -> list[dict[str, Any]]:
    """Return every system's figures in an engine, with milliseconds a text and speed-ups over full depth by size."""
    results, entries = [], {}
    for system in SYSTEMS:
        point, entry = figures(models, system, engine)
        entries[system.name] = contestants(models, system, engine, point)
        results.append({"system": system.name, "engine": engine, **entry, "ms": {}, "speedup": {}})
    texts = models.rows.texts[len(models.rows.texts) // 2 :]
    texts = [texts[number * len(texts) // TIMED] for number in range(TIMED)]
    for size in SIZES:
        runs: dict[str, TextRun] = {
            name: min(fastest_settings(some, texts, size, count=1), key=lambda one: one.seconds).run
            for name, some in entries.items()
        }
        times, _ = time_texts(runs, texts, size, ROUNDS)
        for entry in results:
            mine = times[entry["system"]]
            entry["ms"][str(size)] = 1000 * median(mine.passes) / TIMED
            entry["speedup"][str(size)] = asdict(SpeedupRange.of(times[SYSTEMS[0].name], mine))
    return results


HEAD = f"""# Token exit, layer exit and both, on long texts

IMDB, MiniLM with six layers, texts cut to {TOKENS} tokens. Token exit keeps 0.7 of the tokens at layer 2 and 0.7 of
those at layer 4. Asked: lose at most 1 % of the right answers, with a standard error to spare; {ROWS // 2:,} rows
choose, {ROWS // 2:,} others report. *Lost* is against full depth with all tokens; *of its own* against the same model
at full depth. *MACs*: those of full depth over those of the system, without padding, with heads and exits.
Milliseconds are from text to answer, one thread, {TIMED} texts in turns; the speed-up is the median of {ROUNDS} rounds
over full depth in the same precision, lowest and highest in brackets. MPEE reports 2.5 to 4.4 times by FLOPs for both
axes, with twelve layers."""


def page(about: dict[str, object], results: list[dict[str, Any]]) -> str:
    """Write the results as Markdown."""
    parts = [HEAD, as_lines(about)]
    for engine in ENGINES:
        head = "| what can leave | accuracy | lost (of its own) | layers | before layer 1 | MACs |"
        lines = [
            head + "".join(f" batch {size}, ms | speed-up |" for size in SIZES),
            "|---" * (6 + 2 * len(SIZES)) + "|",
        ]
        lines += [line(entry) for entry in results if entry["engine"] == engine]
        parts += [f"## {engine}", "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


def line(entry: dict[str, Any]) -> str:
    """Return a system's row of the table."""
    cells = [entry["system"], f"{entry['score']:.3f}", f"{entry['lost']:.2%} ({entry['lost_of_own']:.2%})"]
    cells += [f"{entry['mean_exit']:.2f}", f"{entry['before_layer_1']:.0%}", f"{entry['macs_ratio']:.2f}"]
    for size, ratio in entry["speedup"].items():
        cells += [f"{entry['ms'][size]:.2f}", f"{ratio['median']:.2f} ({ratio['low']:.2f}-{ratio['high']:.2f})"]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Make what is missing, race, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--runs", type=Path, default=Path("runs/axes"))
    parser.add_argument("--encoders", type=Path, default=Path("runs/lexical"), help="what lexical_models.py trained")
    parser.add_argument("--prepare", action="store_true", help="make models, graphs and traces, race nothing")
    options = parser.parse_args()
    models = Models(Cell("imdb", 0, options.data, options.encoders), options.runs)
    options.runs.mkdir(parents=True, exist_ok=True)
    for system in SYSTEMS:
        models.folder(system)
    for engine in ENGINES:
        for tokens_leave in (False, True):
            models.trace(tokens_leave, engine)
    if options.prepare:
        return
    results = [entry for engine in ENGINES for entry in race(models, engine)]
    about = provenance()
    (RESULTS / "both_axes.json").write_text(json.dumps({"about": about, "results": results}, indent=1) + "\n")
    (RESULTS / "both_axes.md").write_text(page(about, results))


if __name__ == "__main__":
    main()
