"""A study as data: the systems that a paper compares, the budgets it compares them at, the figures it printed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class TrainingSpec:
    """A way to train a model. Systems that share it share its runs, within a study and between studies.

    Attributes:
        name: of its runs; unique among all trainings.
        objective: a name of `offramp.training.objectives.registry.OBJECTIVES`.
        exits: further settings of the exits, as data that `MultiExitConfig` takes.
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
    """A row of the paper's table: a trained model and the policies it exits with.

    Attributes:
        name: the row's name, as in the paper.
        training: of its model.
        policies: the best of these is reported, as data; none = all samples are answered at the last exit.
        regression: the same for labels that are values; None = the system is left out there.
    """

    name: str
    training: TrainingSpec
    policies: tuple[Mapping[str, Any], ...] = ()
    regression: tuple[Mapping[str, Any], ...] | None = None

    def policies_for(self, regression: bool) -> tuple[Mapping[str, Any], ...]:
        """Return the policies for the kind of labels."""
        return (self.regression or ()) if regression else self.policies


@dataclass(frozen=True)
class LayersSaved:
    """The threshold nearest to a share of the layers saved (PCEE-BERT, eq. 4)."""

    share: float

    @property
    def label(self) -> str:
        """Return the name used in tables."""
        return f"{self.share:.0%} saved"


@dataclass(frozen=True)
class SpeedupBetween:
    """The threshold with the best score in a range of speed-ups: layers over mean exit layer."""

    least: float
    most: float

    @property
    def label(self) -> str:
        """Return the name used in tables."""
        return f"best of {self.least:.2f}x to {self.most:.2f}x"


@dataclass(frozen=True)
class ScoreKept:
    """The most savings that keep a share of the plain model's score, at this and at all stricter thresholds."""

    share: float

    @property
    def label(self) -> str:
        """Return the name used in tables."""
        return f"{self.share:.0%} of the score"


@dataclass(frozen=True)
class MacsReduced:
    """The threshold nearest to a reduction of the multiply-accumulates, in times (MPEE, eq. 15)."""

    times: float

    @property
    def label(self) -> str:
        """Return the name used in tables."""
        return f"{self.times:g}x fewer MACs"


AS_IT_IS = "as it is"
"""The label of a system without thresholds."""
EXITS = "exits"
"""The label of figures over all exits of a training."""

Budget = LayersSaved | SpeedupBetween | ScoreKept | MacsReduced


@dataclass(frozen=True)
class PublishedResult:
    """Figures that a paper printed.

    Attributes:
        table: its name in the paper.
        backbone: the encoder.
        data: the data set, in lower case.
        system: the row, or the training.
        budget: the label of a budget, AS_IT_IS, or EXITS.
        figures: score, relative, average and best in percent of the metric; saving from 0 to 1; speedup and macs_ratio.
    """

    table: str
    backbone: str
    data: str
    system: str
    budget: str
    figures: Mapping[str, float]


@dataclass(frozen=True)
class Study:
    """A paper's comparison.

    Attributes:
        name: on the command line.
        source: authors, title, place, year.
        systems: the rows.
        budgets: at which every system is compared.
        shows: the figures that the paper reports: of score, relative, saving, speedup, mean_exit and macs_ratio.
        published: the figures printed in the paper.
        plain: the training whose last exit is the full model that scores and costs are compared with.
        pace: the system whose savings set the others' budgets, since its own come in steps; None = no system does.
        trainings: scored exit by exit in addition to those of the systems.
        notes: differences from the paper, a sentence each.
    """

    name: str
    source: str
    systems: tuple[SystemSpec, ...]
    budgets: tuple[Budget, ...]
    shows: tuple[str, ...]
    published: tuple[PublishedResult, ...]
    plain: TrainingSpec = PLAIN
    pace: str | None = None
    trainings: tuple[TrainingSpec, ...] = ()
    notes: tuple[str, ...] = ()

    def all_trainings(self, regression: bool) -> tuple[TrainingSpec, ...]:
        """Return every training that it needs, the plain one first."""
        used = [self.plain, *self.trainings, *(system.training for system in self.systems_for(regression))]
        return tuple({training.name: training for training in used}.values())

    def systems_for(self, regression: bool) -> tuple[SystemSpec, ...]:
        """Return the systems that apply to the kind of labels."""
        return tuple(system for system in self.systems if not regression or system.regression is not None)

    def published_on(self, data: str | None) -> tuple[PublishedResult, ...]:
        """Return the figures printed for a data set."""
        return tuple(row for row in self.published if row.data == data)


def printed(
    table: str, backbone: str, figures: tuple[str, ...], text: str, scales: tuple[float, ...] | None = None
) -> tuple[PublishedResult, ...]:
    """Parse the rows of a table, written as in the paper.

    Args:
        table: its number.
        backbone: the encoder.
        figures: names of the numbers in a cell, in its order.
        text: a line of data sets, then lines of system, budget, and a cell for each data set, separated by bars. The
            numbers of a cell are separated by spaces; "-" is a cell that the paper leaves empty.
        scales: factors from the printed units to those of `PublishedResult`; None = 1.
    """
    scales = scales or (1.0,) * len(figures)
    head, *lines = ([cell.strip() for cell in line.split("|")] for line in text.strip().splitlines())
    rows = []
    for system, budget, *cells in lines:
        for data, cell in zip(head[2:], cells, strict=True):
            if cell != "-":
                numbers = [float(number) for number in cell.split()]
                values = {name: number * scale for name, number, scale in zip(figures, numbers, scales, strict=True)}
                rows.append(PublishedResult(table, backbone, data, system, budget, values))
    return tuple(rows)
