"""What a study is, as data: what a paper compares, what it reads off, and the figures that it printed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class TrainingSpec:
    """One way to train a model. Systems that share it share its runs, within a study and between studies.

    Attributes:
        name: of its runs, so no two trainings may have the same.
        objective: a name of `offramp.training.objectives.registry.OBJECTIVES`.
        exits: what else the exits are like, as data that `MultiExitConfig` takes.
        kept: share of the encoder's layers that are kept, rounded.
        alone: whether the last exit is the only one.
        tokens: depth as a share of the layers -> share of the tokens that stay from there on.
    """

    name: str
    objective: str = "weighted"
    exits: Mapping[str, Any] = field(default_factory=dict)
    kept: float = 1.0
    alone: bool = False
    tokens: Mapping[float, float] = field(default_factory=dict)


PLAIN = TrainingSpec("plain", "last", alone=True)
"""The encoder with one classifier at its end."""


@dataclass(frozen=True)
class SystemSpec:
    """A row of the paper's table: a trained model, and how it leaves.

    Attributes:
        name: the row's name, as in the paper.
        training: of its model.
        policies: those that the best may be taken of, as data; none = everybody answers at the last exit.
        regression: the same where the labels are values; None = the system is left out there.
    """

    name: str
    training: TrainingSpec
    policies: tuple[Mapping[str, Any], ...] = ()
    regression: tuple[Mapping[str, Any], ...] | None = None


@dataclass(frozen=True)
class LayersSaved:
    """The threshold that comes nearest to a share of the layers saved (PCEE-BERT, eq. 4)."""

    share: float

    @property
    def label(self) -> str:
        """The column's name."""
        return f"{self.share:.0%} saved"


@dataclass(frozen=True)
class SpeedupBetween:
    """The threshold with the best score among those of a range of speed-ups: layers over mean exit layer."""

    least: float
    most: float

    @property
    def label(self) -> str:
        """See `Saving.label`."""
        return f"best of {self.least:.2f}x to {self.most:.2f}x"


@dataclass(frozen=True)
class ScoreKept:
    """The most savings that keep a share of the plain model's score, at this and at all stricter thresholds."""

    share: float

    @property
    def label(self) -> str:
        """See `Saving.label`."""
        return f"{self.share:.0%} of the score"


@dataclass(frozen=True)
class MacsReduced:
    """The threshold that comes nearest to so many times fewer multiply-accumulates (MPEE, eq. 15)."""

    times: float

    @property
    def label(self) -> str:
        """See `Saving.label`."""
        return f"{self.times:g}x fewer MACs"


AS_IT_IS = "as it is"
"""The label of a system that has no threshold."""
EXITS = "exits"
"""The label of figures over all exits of a training."""

Budget = LayersSaved | SpeedupBetween | ScoreKept | MacsReduced


@dataclass(frozen=True)
class PublishedResult:
    """Figures that a paper printed.

    Attributes:
        table: where.
        backbone: the encoder.
        data: the data set, in lower case.
        system: the row, or the training.
        ask: the label of the ask that they answer, AS_IT_IS, or EXITS.
        figures: score, relative, average and best in percent of the metric; saving from 0 to 1; speedup and macs_ratio.
    """

    table: str
    backbone: str
    data: str
    system: str
    ask: str
    figures: Mapping[str, float]


@dataclass(frozen=True)
class Study:
    """A paper's comparison.

    Attributes:
        name: what it is called on the command line.
        source: authors, title, place, year.
        systems: what is compared.
        asks: what is read off, for each system.
        shows: the figures that the paper tells: of score, relative, saving, speedup, mean_exit and macs_ratio.
        published: what it printed.
        plain: the training whose last exit is the full model that scores and costs are held against.
        pace: the system whose savings the others are brought to, since its own come in steps; None = all choose freely.
        trainings: trained and scored exit by exit beside those of the systems.
        notes: what differs from the paper, a sentence each.
    """

    name: str
    source: str
    systems: tuple[SystemSpec, ...]
    asks: tuple[Budget, ...]
    shows: tuple[str, ...]
    published: tuple[PublishedResult, ...]
    plain: TrainingSpec = PLAIN
    pace: str | None = None
    trainings: tuple[TrainingSpec, ...] = ()
    notes: tuple[str, ...] = ()

    def all_trainings(self, regression: bool) -> tuple[TrainingSpec, ...]:
        """Every training that it needs, the plain one first."""
        used = [self.plain, *self.trainings, *(system.training for system in self.systems_for(regression))]
        return tuple({training.name: training for training in used}.values())

    def systems_for(self, regression: bool) -> tuple[SystemSpec, ...]:
        """The systems that have a meaning for the kind of labels."""
        return tuple(system for system in self.systems if not regression or system.regression is not None)

    def published_on(self, data: str | None) -> tuple[PublishedResult, ...]:
        """What the paper printed for a data set."""
        return tuple(row for row in self.published if row.data == data)


def printed(
    table: str, backbone: str, figures: tuple[str, ...], text: str, scales: tuple[float, ...] | None = None
) -> tuple[PublishedResult, ...]:
    """The rows of a table, written as in the paper.

    Args:
        table: its number.
        backbone: the encoder.
        figures: what each cell holds, in its order.
        text: a line of data sets, then lines of system, ask, and a cell for each data set, all with bars between. The
            numbers of a cell have spaces between; "-" is a cell that the paper leaves empty.
        scales: what to multiply each figure by to have the unit of `Published`; None = they have it.
    """
    scales = scales or (1.0,) * len(figures)
    head, *lines = ([cell.strip() for cell in line.split("|")] for line in text.strip().splitlines())
    rows = []
    for system, ask, *cells in lines:
        for data, cell in zip(head[2:], cells, strict=True):
            if cell != "-":
                numbers = [float(number) for number in cell.split()]
                told = {name: number * scale for name, number, scale in zip(figures, numbers, scales, strict=True)}
                rows.append(PublishedResult(table, backbone, data, system, ask, told))
    return tuple(rows)
