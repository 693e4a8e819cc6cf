"""Rows of a benchmark: early exit against full depth, the cut encoder, the lexical exit alone and a cascade.

The upper limit of early exit is computed, too. In the fastest full-depth model of the same engine a text takes
t + e + L b: tokenizer, embedding and L layers. If early exit cost nothing but the parts that run, a text would take t,
the lexical exit l where it is read, the embedding if it goes on, and as many layers as it runs, m on average. So the
ceiling is (t + e + L b) / (t + l + e (share that goes on) + m b). The share of the ceiling that is reached counts all
else against early exit: exits, decisions, cutting the batch, the small batches of the rows that stay, and the making of
answers in Python.

The tokenizer and the lexical exit are measured as contestants; the cost table of the engine divides what remains of the
full-depth model's time between embedding and layers. `ideal` and `efficiency` are the same without the tokenizer, and
with the lexical exit as the engine runs it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from offramp.bench.adaptive import FULL
from offramp.bench.contestant import Contestant, Kind, TextAnswers
from offramp.bench.settings import Ready
from offramp.bench.texts import TextEncoder
from offramp.bench.timer import LayerCostModel, SpeedupRange, TextTimes, median, time_texts
from offramp.data.rows import Text
from offramp.evaluation.metrics import layerwise, metric_for
from offramp.model.config import MultiExitConfig
from offramp.types.trace import Trace


@dataclass(frozen=True)
class BenchmarkRow:
    """Figures of one contestant at one batch size.

    Attributes:
        batch_size: texts at once, of similar length.
        engine: the runtime.
        name: the operating point's, or FULL, or the contestant's.
        kind: see `offramp.bench.contestant.Kind`.
        rival: True for a full-depth model without exits.
        threads: that compute a batch.
        workers: that answer batches at the same time.
        score: on the benchmark's metric; None without labels.
        mean_exit: mean exit layer.
        p50_ms: milliseconds a text of a request of `batch_size` texts alone, in the median request.
        p99_ms: in the slowest requests.
        texts_per_second: of all texts in one call.
        speedup: over the fastest full-depth model in the same engine; in any, where that engine has none.
        ideal: the upper limit of that speed-up, the tokenizer not counted; None where no text can leave early.
        efficiency: the median speed-up as a share of `ideal`.
        ceiling: the upper limit of that speed-up, tokenizer and lexical exit counted (see the module).
        share_of_ceiling: the median speed-up as a share of `ceiling`.
        against_best: speed over that of the fastest full-depth model, in any engine.
    """

    batch_size: int
    engine: str
    name: str
    kind: Kind
    rival: bool
    threads: int
    workers: int
    score: float | None
    mean_exit: float
    p50_ms: float
    p99_ms: float
    texts_per_second: float
    speedup: SpeedupRange
    ideal: float | None
    efficiency: float | None
    ceiling: float | None
    share_of_ceiling: float | None
    against_best: SpeedupRange

    @property
    def early(self) -> bool:
        """Return True for an operating point."""
        return self.kind == "adaptive"


@dataclass(frozen=True)
class BenchmarkResult:
    """All results on one model and one data set.

    Attributes:
        metric: of the scores; None without labels.
        depth: layers of the full model.
        rows: number of texts.
        rounds: how often each contestant answered all of them.
        threads: cores that threads and workers share.
        results: by batch size, full-depth models first.
    """

    metric: str | None
    depth: int
    rows: int
    rounds: int
    threads: int
    results: tuple[BenchmarkRow, ...]


def compare(
    contestants: Sequence[Ready],
    texts: Sequence[Text],
    labels: Tensor | None,
    batch_size: int,
    rounds: int,
    *,
    config: MultiExitConfig,
    encoder: TextEncoder,
    costs: Mapping[str, LayerCostModel],
) -> list[BenchmarkRow]:
    """Race contestants in their settings; return a row for each.

    Args:
        contestants: at least one full-depth model.
        texts: all of them are answered in one call.
        labels: (N,) or (N, C); None = nothing is scored.
        batch_size: texts at once.
        rounds: how often each contestant answers all texts.
        config: of the model.
        encoder: its time is that of the tokenizer.
        costs: of a layer, by engine; an engine without has no ceilings.
    """
    runs = {index: ready.run for index, ready in enumerate(contestants)}

    def tokenize(texts: Sequence[Text], batch_size: int) -> TextAnswers:
        rows = encoder.encode(texts)
        for start in range(0, len(rows), batch_size):
            encoder.batch(rows[start : start + batch_size])
        return TextAnswers(torch.empty(0), torch.empty(0))

    times, answers = time_texts({**runs, TOKENIZER: tokenize}, texts, batch_size, rounds)
    measured = _Race(contestants, times, answers, labels, config, costs)
    return [measured.row(index, batch_size) for index in runs]


TOKENIZER = -1


@dataclass(frozen=True)
class _Race:
    """Times and answers of all contestants at one batch size, by their number."""

    contestants: Sequence[Ready]
    times: Mapping[int, TextTimes]
    answers: Mapping[int, TextAnswers]
    labels: Tensor | None
    config: MultiExitConfig
    costs: Mapping[str, LayerCostModel]

    def fastest(self, engine: str | None = None) -> TextTimes:
        """Return the times of the fastest full-depth model of an engine, or of all if it has none."""
        full = [number for number, ready in enumerate(self.contestants) if ready.contestant.kind == "full-depth"]
        own = [number for number in full if self.contestants[number].contestant.engine == engine]
        return min((self.times[number] for number in own or full), key=lambda times: median(times.passes))

    def row(self, number: int, batch_size: int) -> BenchmarkRow:
        """Return a contestant's row."""
        ready, times, answers = self.contestants[number], self.times[number], self.answers[number]
        contestant = ready.contestant
        speedup = SpeedupRange.of(self.fastest(contestant.engine), times)
        ideal, ceiling = self._limits(contestant, answers.exit_layers)
        return BenchmarkRow(
            batch_size=batch_size,
            engine=contestant.engine,
            name=contestant.name,
            kind=contestant.kind,
            rival=contestant.kind == "full-depth" and contestant.name != FULL,
            threads=ready.threads,
            workers=ready.workers,
            score=None if self.labels is None else score(answers.logits, self.labels, self.config),
            mean_exit=answers.exit_layers.double().mean().item(),
            p50_ms=times.requests.ms(0.5),
            p99_ms=times.requests.ms(0.99),
            texts_per_second=times.per_second,
            speedup=speedup,
            ideal=ideal,
            efficiency=None if ideal is None else speedup.median / ideal,
            ceiling=ceiling,
            share_of_ceiling=None if ceiling is None else speedup.median / ceiling,
            against_best=SpeedupRange.of(self.fastest(), times),
        )

    def _limits(self, contestant: Contestant, exits: Tensor) -> tuple[float | None, float | None]:
        """Return the upper limits of a speed-up, without and with the tokenizer; None where there is no early exit."""
        costs = self.costs.get(contestant.engine)
        if costs is None or not (contestant.kind == "adaptive" or contestant.name == FULL):
            return None, None
        depth, reads = self.config.exit_layers[-1], bool((exits == 0).any())
        tokenizer, full = 1 / self.times[TOKENIZER].per_second, 1 / self.fastest(contestant.engine).per_second
        cost = tokenizer + max(full - tokenizer, 0.0) * costs.share(depth, exits)
        cost += self._lexical(tokenizer, full, costs) * reads
        return costs.ideal(depth, exits, reads), full / cost

    def _lexical(self, tokenizer: float, full: float, costs: LayerCostModel) -> float:
        """Return the seconds that the lexical exit takes a text, without the tokenizer."""
        for number, ready in enumerate(self.contestants):
            if ready.contestant.kind == "lexical":
                return max(1 / self.times[number].per_second - tokenizer, 0.0)
        whole: float = costs.embed + costs.block * self.config.exit_layers[-1]
        return costs.lexical / whole * max(full - tokenizer, 0.0)


def score(logits: Tensor, labels: Tensor, config: MultiExitConfig) -> float:
    """Return the default metric's value of answers."""
    return layerwise(_trace(logits, labels, config.problem_type))[0]


def metric_name(config: MultiExitConfig, labels: Tensor) -> str:
    """Return the name of the default metric for labels."""
    return metric_for(_trace(torch.zeros(len(labels), config.num_labels), labels, config.problem_type), None)[0]


def _trace(logits: Tensor, labels: Tensor, problem_type: str) -> Trace:
    """Wrap answers as a trace of one exit."""
    return Trace(logits.float().unsqueeze(0), labels, problem_type=problem_type)
