"""Exit scaling: another policy's score on one scale for all exits, so that one number means a threshold for each.

Platt, "Probabilistic Outputs for Support Vector Machines", 1999, and Schuster et al., "Consistent Accelerated Inference
via Confident Adaptive Transformers" (CATs), EMNLP 2021, arXiv:2104.08803.

Differs from CATs, which predict from hidden states whether the last exit gives the same answer: here from one score.

A score of 0.9 means more at a deep exit than at a shallow one. Each exit has a line that takes the score's log-odds to
those of the last exit giving the same answer. A line that rises keeps the order of scores, so log-odds t at every exit
are a score of its own at each. A chosen operating point (`offramp.calibrate`) is therefore the inner policy, with
thresholds that differ; nothing is left to compute at run time.
"""

import math
from dataclasses import dataclass, field
from typing import ClassVar, final

import torch
from torch import Tensor

from offramp.errors import InvalidInput
from offramp.policies.base import Memory, Policy, Step, WrapperPolicy
from offramp.policies.registry import POLICIES
from offramp.registry import load
from offramp.types.outputs import ExitOutput

LARGEST_LOG_ODDS = math.log(1e5)  # scores nearer to 0 and 1 are rounding


@final
@dataclass(frozen=True)
class ExitScaled(WrapperPolicy):
    """Score: a line over the log-odds of the inner policy's score: the log-odds of the last exit giving this answer.

    Attributes:
        policy: the inner policy, with a score in 0..1 (`Policy.unit_interval`).
        lines: for each exit a constant and a slope > 0 (`offramp.policies.fitting.fit_lines`).
        fitted_on: hashes of the rows that they were fitted on (`offramp.types.trace.row_hashes`); () = set by hand.
    """

    parameter: ClassVar[str] = "lines"

    policy: Policy
    lines: tuple[tuple[float, float], ...]
    fitted_on: tuple[str, ...] = field(default=(), repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.policy, Policy) or not self.policy.unit_interval:
            *names, last = (name for name in POLICIES if load(POLICIES, name).unit_interval)
            raise InvalidInput(
                f"lines, a threshold for each exit, go around {', '.join(names)} and {last}, not around {self.policy}"
            )
        lines = tuple(tuple(float(value) for value in line) for line in self.lines)
        if not lines or not all(len(line) == 2 and all(map(math.isfinite, line)) and line[1] > 0 for line in lines):
            raise InvalidInput(f"lines are a finite constant and a slope above 0 for each exit; got {lines}")
        object.__setattr__(self, "lines", lines)
        object.__setattr__(self, "fitted_on", tuple(self.fitted_on))

    def step(self, exit: int, out: ExitOutput, memory: Memory) -> Step:
        """Score one exit."""
        self._check_exits(exit + 1, out.last)
        step = self.policy.step(exit, out, memory)
        return Step(self._on_line(exit, step.score), step.logits, step.memory)

    def rescale(self, scores: Tensor) -> Tensor:
        """Return this policy's scores (L, N) from the inner policy's.

        Raises:
            InvalidInput: the scores are not those of one exit for each line.
        """
        self._check_exits(len(scores), True)
        return torch.stack([self._on_line(exit, score) for exit, score in enumerate(scores)])

    def _check_exits(self, exits: int, last: bool) -> None:
        """Raise InvalidInput unless the lines fit a model with `exits` exits; with at least so many, if not `last`."""
        if exits > len(self.lines) or (last and exits < len(self.lines)):
            count = f"{exits} exits" if last else f"at least {exits} exits"
            raise InvalidInput(f"lines for {len(self.lines)} exits, but the model has {count}")

    def _on_line(self, exit: int, score: Tensor) -> Tensor:
        constant, slope = self.lines[exit]
        return constant + slope * log_odds(score.float())

    def thresholds(self, threshold: float) -> tuple[float, ...]:
        """Return the thresholds of the inner policy, one for each exit but the last, that mean `threshold` here."""
        scaled = [(threshold - constant) / slope for constant, slope in self.lines[:-1]]
        return tuple(_score(odds) for odds in scaled)


def log_odds(score: Tensor) -> Tensor:
    """Return the log-odds of scores in 0..1, up to `LARGEST_LOG_ODDS` either way."""
    return torch.logit(score, eps=1 / (1 + math.exp(LARGEST_LOG_ODDS)))


def _score(odds: float) -> float:
    """Return the score with these log-odds; inf above every score, -inf at or below every score."""
    if odds > LARGEST_LOG_ODDS:
        return math.inf
    return -math.inf if odds <= -LARGEST_LOG_ODDS else 1 / (1 + math.exp(-odds))
