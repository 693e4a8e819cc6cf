"""The result of a study: typed rows that its JSON file and its page are written from."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from offramp.studies.selection import Figures, Selected
from offramp.studies.spec import Study

Values = list[float | None]
"""Medians over the seeds; None where a seed has no value."""


@dataclass(frozen=True)
class SeedSummary:
    """A system's figures at one budget, over the seeds.

    Attributes:
        system: its name.
        budget: its label.
        selected: one for each seed; None where no threshold meets the budget.
    """

    system: str
    budget: str
    selected: tuple[Selected | None, ...]

    @property
    def median(self) -> Figures:
        """Return the median of each figure over the seeds that have a result."""
        return self._reduce(statistics.median)

    @property
    def low(self) -> Figures:
        """Return the lowest of each figure."""
        return self._reduce(min)

    @property
    def high(self) -> Figures:
        """Return the highest of each figure."""
        return self._reduce(max)

    def _reduce(self, reduce: Callable[[Sequence[float]], float]) -> Figures:
        return over_seeds([selected.figures for selected in self.selected if selected is not None], reduce)

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        readings = [selected and selected.to_json() for selected in self.selected]
        spread = {"middle": self.median, "low": self.low, "high": self.high}
        return {"system": self.system, "ask": self.budget, "readings": readings, **spread}


@dataclass(frozen=True)
class ExitScores:
    """A training's scores at every exit, medians over the seeds; ranges are the lowest and the highest seed."""

    training: str
    objective: str
    layers: Sequence[int]
    scores: Sequence[float]
    average: float
    average_range: tuple[float, float]
    best: float
    best_range: tuple[float, float]


@dataclass(frozen=True)
class ScoreLead:
    """The lead of a system's score over the pace system's at one budget, for each seed that has both."""

    system: str
    budget: str
    seeds: Sequence[float]

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        middle = statistics.median(self.seeds)
        return {"system": self.system, "ask": self.budget, "seeds": list(self.seeds), "middle": middle}


@dataclass(frozen=True)
class ReachableExits:
    """The mean exit layers that a system's thresholds can reach on the selection rows: ends, number, widest gap."""

    system: str
    least: float
    most: float
    settings: float
    widest_gap: float


@dataclass(frozen=True)
class ExitAnalysis:
    """A training's analyses on all validation rows; None = does not apply.

    Attributes:
        training: its name.
        entropy: (L,) mean entropy in nats.
        error: (L,) share of wrong answers.
        became_wrong: share of the rows that an earlier exit answers right and the last one wrong.
        certainty: (L, 5) least, quartiles and largest of the learned certainty.
        bleu: (L, 2) correlation of BLEU and confidence, rows answered 0 and 1.
    """

    training: str
    entropy: list[float] | None = None
    error: list[float] | None = None
    became_wrong: float | None = None
    certainty: list[Values] | None = None
    bleu: list[Values] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain data, without the analyses that do not apply."""
        data = asdict(self)
        data = {"spoilt" if name == "became_wrong" else name: value for name, value in data.items()}
        return {name: value for name, value in data.items() if value is not None}


@dataclass(frozen=True)
class CertifiedFigures:
    """Test figures of a system's first policy at a certified threshold.

    Attributes:
        system: its name.
        policy: as data.
        level: bound on the share of rows answered wrong where the last exit is right.
        delta: probability that the bound does not hold.
        seeds: figures of each seed that could be certified, with "lost": the share on the test rows.
    """

    system: str
    policy: Mapping[str, Any]
    level: float
    delta: float
    seeds: Sequence[Figures]

    @property
    def median(self) -> Figures:
        """Return the median of each figure; nothing where no seed could be certified."""
        return over_seeds(self.seeds, statistics.median)

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "system": self.system,
            "policy": dict(self.policy),
            "level": self.level,
            "delta": self.delta,
            "middle": self.median,
            "seeds": list(self.seeds),
        }


@dataclass(frozen=True, kw_only=True)
class StudyResult:
    """All figures of a study.

    Attributes:
        study: the comparison.
        seeds: of the training runs.
        selection_rows: number of rows that choose thresholds.
        test_rows: number of rows that are reported.
        depth: layers of the plain model.
        metrics: the score is their mean.
        exits: a row for each training.
        rows: a row for each system and budget.
        leads: a row for each system and budget, where a system sets the pace.
        reached: a row for each system with policies.
        analyses: a row for each training with several exits.
        certified: a row for each system with thresholds; none for regression.
    """

    study: Study
    seeds: tuple[int, ...]
    selection_rows: int
    test_rows: int
    depth: int
    metrics: tuple[str, ...]
    exits: tuple[ExitScores, ...]
    rows: tuple[SeedSummary, ...]
    leads: tuple[ScoreLead, ...]
    reached: tuple[ReachableExits, ...]
    analyses: tuple[ExitAnalysis, ...]
    certified: tuple[CertifiedFigures, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "study": self.study.name,
            "source": self.study.source,
            "seeds": list(self.seeds),
            "shows": list(self.study.shows),
            "rows_that_choose": self.selection_rows,
            "rows_reported": self.test_rows,
            "depth": self.depth,
            "metrics": list(self.metrics),
            "exits": [asdict(row) for row in self.exits],
            "rows": [row.to_json() for row in self.rows],
            "ahead": [row.to_json() for row in self.leads],
            "reached": [asdict(row) for row in self.reached],
            "analyses": [row.to_json() for row in self.analyses],
            "promises": [row.to_json() for row in self.certified],
        }


def over_seeds(seeds: Sequence[Figures], reduce: Callable[[Sequence[float]], float]) -> Figures:
    """Reduce each figure that all seeds have over the seeds."""
    names = [name for name in seeds[0] if all(name in figures for figures in seeds)] if seeds else []
    return {name: reduce([figures[name] for figures in seeds]) for name in names}
