"""Is early exit more robust, as PABEE says? Synonym attacks on the answer, and on the time that it takes.

    python benchmarks/attack_models.py --task snli                  # train; start it again after a kill
    python benchmarks/attack.py --task snli --rows 300 --minutes 3  # attack; start it again for the next rows
    python benchmarks/attack.py --report                            # results from what is there

Systems of one model: full depth, everybody at one layer, and three policies, all but the first with a speed-up of 1.5
on validation rows. Each is attacked alone by somebody who sees its answer, probabilities and exit (see
`attack_search`). The model runs once for each text, at full depth; what a system would have told is replayed, and each
system's queries are counted by themselves.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import attack_report
from attack_models import TASKS, deployed, examples, validation_trace
from attack_search import Fool, Goal, SearchAnswers, SearchResult, Slow, Words, read_synonyms, search
from offramp.calibration.calibrate import calibrate
from offramp.data.batching import collate, encode, length_sorted
from offramp.data.rows import Text
from offramp.inference.torch_engine import TorchEngine
from offramp.model.default_encoder import default_encoder
from offramp.model.hub import load_encoder, load_tokenizer
from offramp.policies.registry import load_policy
from offramp.policies.replay import replay
from offramp.types.operating_point import OperatingPoint, Target, write_points
from offramp.types.trace import Trace

SPEEDUP = 1.5
LEAST_SIMILARITY = 0.8
POLICIES = {
    "max-prob": load_policy("max-prob"),
    "patience": load_policy("patience"),
    "pcee": load_policy("pcee", patience=2),
}
BATCH_SIZE = 32


@dataclass(frozen=True)
class Known:
    """Remembers what was computed of each text, so that no text is computed twice.

    Attributes:
        compute: texts -> (N, ...).
        known: text -> what was computed.
    """

    compute: Callable[[Sequence[Text]], Tensor]
    known: dict[Text, Tensor] = field(default_factory=dict)

    def __call__(self, texts: Sequence[Text]) -> Tensor:
        """What `compute` says of the texts."""
        new = [text for text in dict.fromkeys(texts) if text not in self.known]
        if new:
            self.known.update(zip(new, self.compute(new), strict=True))
        return torch.stack([self.known[text] for text in texts])


def in_batches(
    run: Callable[[dict[str, Tensor]], Tensor], tokenizer: PreTrainedTokenizerBase, max_length: int, texts: list[Text]
) -> Tensor:
    """What `run` says of the texts, (N, ...), in batches of one length."""
    rows = encode(tokenizer, texts, max_length)
    batches = length_sorted(rows, BATCH_SIZE)
    parts = [run(collate([rows[number] for number in numbers], tokenizer.pad_token_id)) for numbers in batches]
    order = torch.tensor([number for numbers in batches for number in numbers])
    return torch.cat(parts)[order.argsort()]


def all_exits(engine: TorchEngine, batch: dict[str, Tensor]) -> Tensor:
    """Logits of every exit, (B, L, C)."""
    return engine.all_exits(batch).logits.transpose(0, 1)


@torch.inference_mode()
def meaning(encoder: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
    """Mean of the last hidden states at length 1, (B, D)."""
    hidden = encoder(**batch).last_hidden_state.float()  # (B, T, D)
    total = (hidden * batch["attention_mask"].unsqueeze(-1)).sum(dim=1)
    return torch.nn.functional.normalize(total, dim=-1)


def replayed(point: OperatingPoint, exits: Tensor) -> SearchAnswers:
    """What a system at this point tells of texts whose exits say `exits`, (N, L, C)."""
    answers = replay(Trace(exits.transpose(0, 1)), point.policy, point.thresholds)
    return SearchAnswers(answers.logits.softmax(dim=-1), answers.exit_layers)


def systems(validation: Trace) -> dict[str, OperatingPoint]:
    """Full depth, everybody at the layer that costs as much as the policies, and the policies."""
    depth = validation.depth
    fixed = {"full": depth, "one layer": int(depth / SPEEDUP)}
    points = {name: OperatingPoint({"name": "fixed"}, (layer,) * (depth - 1)) for name, layer in fixed.items()}
    chosen = {name: calibrate(validation, policy, Target(speedup=SPEEDUP)) for name, policy in POLICIES.items()}
    return points | chosen


@dataclass(frozen=True)
class Attacker:
    """Attacks the systems of one model.

    Attributes:
        points: of the systems.
        exits: texts -> logits of every exit, (N, L, C).
        meanings: texts -> vectors of length 1, (N, D).
        synonyms: of words in small letters.
    """

    points: dict[str, OperatingPoint]
    exits: Known
    meanings: Known
    synonyms: dict[str, list[str]]

    def row(self, text: Text, label: int) -> dict[str, Any]:
        """Every system attacked on one row: what the exits say before, and of the text that each search ends at."""
        premise, attacked = (None, text) if isinstance(text, str) else text
        start = tuple(attacked.split())
        as_texts = partial(joined, premise)
        before = self.exits(as_texts([start]))
        results = {}
        for name, point in self.points.items():
            first = replayed(point, before)
            answer, exit_layer, depth = first.answers.item(), first.exit_layers.item(), before.shape[1]
            goals: dict[str, Goal] = {}
            if answer == label:
                goals["fool"] = Fool(label, first.probabilities[0])
            if name in POLICIES and exit_layer < depth:
                goals["slow"] = Slow(answer, depth)
            for aim, goal in goals.items():
                end = self.attack(start, goal, point, as_texts)
                results[f"{name}, {aim}"] = {
                    "reached": end.reached,
                    "queries": end.queries,
                    "changed": end.changed / len(start),
                    "exits": self.exits(as_texts([end.words]))[0].tolist(),
                    "text": " ".join(end.words),
                }
        self.exits.known.clear()
        self.meanings.known.clear()
        return {"label": label, "exits": before[0].tolist(), "attacks": results}

    def attack(
        self, start: Words, goal: Goal, point: OperatingPoint, as_texts: Callable[[Sequence[Words]], list[Text]]
    ) -> SearchResult:
        """One search against one system."""

        def similar(texts: Sequence[Words]) -> Tensor:
            return self.meanings(joined(None, texts)) @ self.meanings(joined(None, [start]))[0]

        return search(
            start,
            goal,
            lambda texts: replayed(point, self.exits(as_texts(texts))),
            similar,
            self.synonyms,
            LEAST_SIMILARITY,
        )


def joined(premise: str | None, texts: Sequence[Words]) -> list[Text]:
    """Words as texts, behind a premise where there is one."""
    lines = [" ".join(words) for words in texts]
    return [*lines] if premise is None else [(premise, line) for line in lines]


def attacker(task: str, data: Path, folder: Path) -> Attacker:
    """Everything that an attack needs, read and chosen."""
    points = systems(validation_trace(TASKS[task], data, folder))
    write_points(points, folder / "points.json")
    tokenizer, encoder = load_tokenizer(folder), load_encoder(default_encoder()).to(torch.bfloat16).eval()
    limit = TASKS[task].max_length
    exits = partial(in_batches, partial(all_exits, deployed(folder)), tokenizer, limit)
    meanings = partial(in_batches, partial(meaning, encoder), tokenizer, limit)
    synonyms = read_synonyms(data / "word_lists", frozenset(ENGLISH_STOP_WORDS))
    return Attacker(points, Known(exits), Known(meanings), synonyms)


def run(task: str, data: Path, folder: Path, rows: int, minutes: float) -> bool:
    """Attack the rows that are not attacked yet, until the time is up; whether all are done."""
    started, target = time.monotonic(), folder / "attacked.jsonl"
    done = len(target.read_text().splitlines()) if target.exists() else 0
    if done >= rows:
        return True
    ours = attacker(task, data, folder)
    attacked = examples(TASKS[task], data / TASKS[task].attacked)
    for number in range(done, min(rows, len(attacked))):
        if time.monotonic() - started > 60 * minutes:
            return False
        line = json.dumps(ours.row(attacked.texts[number], int(attacked.labels[number])))
        with target.open("a") as file:
            file.write(line + "\n")
    return True


def main() -> None:
    """Attack, or report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=TASKS)
    parser.add_argument("--seed", type=int, default=0, help="of the training")
    parser.add_argument("--rows", type=int, default=300, help="the first ones of TextFooler's file")
    parser.add_argument("--minutes", type=float, default=3, help="then stop between two rows; exit code 3 = not done")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--runs", type=Path, default=Path("runs/attack"))
    parser.add_argument("--report", action="store_true", help="write benchmarks/results/attack.json and .md")
    options = parser.parse_args()
    if options.report:
        attack_report.write(options.runs, list(TASKS), {"speedup": SPEEDUP, "least_similarity": LEAST_SIMILARITY})
    elif options.task is None:
        parser.error("--task or --report")
    else:
        folder = options.runs / f"{options.task}-{options.seed}"
        if not run(options.task, options.data, folder, options.rows, options.minutes):
            raise SystemExit(3)


if __name__ == "__main__":
    main()
