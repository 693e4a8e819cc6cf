"""Per exit: another policy's score on one scale for all exits, so that one number stands for a threshold at each.

A score of 0.9 promises more at a deep exit than at a shallow one. A line for each exit says how much: it takes the
score's log-odds to those of the last exit giving the same answer, which is what CATs predict (Schuster et al., EMNLP
2021, arXiv:2104.08803), here from one score (Platt, "Probabilistic Outputs for Support Vector Machines", 1999).

A line that rises keeps the order of scores, so whoever asks for log-odds t at every exit asks for a score of its own at
each. That is how a chosen operating point runs (`offramp.calibrate`): the other policy, with thresholds that
differ; nothing is left to compute.
"""

import math
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from offramp.errors import InvalidInput
from offramp.policies.base import Memory, Policy, Step
from offramp.policies.certainty import Certainty
from offramp.policies.confidence import Entropy, Margin, MaxProb
from offramp.types.outputs import ExitOutput

SURE = math.log(1e5)  # log-odds end here: nearer to 0 and 1 scores are rounding


@final
@dataclass(frozen=True)
class ExitScaled(Policy):
    """Score: a line of the log-odds of the other policy's: those of the last exit giving this answer.

    Attributes:
        policy: has a score in 0..1: entropy, max-prob, margin or certainty.
        lines: for each exit a constant and a slope > 0 (`offramp.policies.fitting.fit_lines`).
        fitted_on: hashes of the rows that they were fitted on (`offramp.types.trace.row_hashes`); () = set by hand.
    """

    policy: Policy
    lines: tuple[tuple[float, float], ...]
    fitted_on: tuple[str, ...] = field(default=(), repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.policy, (Certainty, Entropy, Margin, MaxProb)):
            raise InvalidInput(
                f"a threshold for each exit is found for entropy, max-prob, margin and certainty, not for {self.policy}"
            )
        lines = tuple(tuple(float(value) for value in line) for line in self.lines)
        if not lines or not all(len(line) == 2 and all(map(math.isfinite, line)) and line[1] > 0 for line in lines):
            raise InvalidInput(f"lines are a finite constant and a slope above 0 for each exit; got {lines}")
        object.__setattr__(self, "lines", lines)
        object.__setattr__(self, "fitted_on", tuple(self.fitted_on))

    def step(self, exit: int, out: ExitOutput, memory: Memory) -> Step:
        """See `Policy.step`."""
        self._check_exits(exit < len(self.lines) and not (out.last and exit < len(self.lines) - 1))
        step = self.policy.step(exit, out, memory)
        return Step(self._on_line(exit, step.score), step.logits, step.memory)

    def rescale(self, scores: Tensor) -> Tensor:
        """Return this policy's scores (L, N) from the other policy's.

        Raises:
            InvalidInput: another number of exits than lines.
        """
        self._check_exits(len(scores) == len(self.lines))
        return torch.stack([self._on_line(exit, score) for exit, score in enumerate(scores)])

    def _check_exits(self, fits: bool) -> None:
        if not fits:
            raise InvalidInput(f"{len(self.lines)} lines for a model with another number of exits")

    def _on_line(self, exit: int, score: Tensor) -> Tensor:
        constant, slope = self.lines[exit]
        return constant + slope * log_odds(score.float())

    def thresholds(self, threshold: float) -> tuple[float, ...]:
        """Those of the other policy, one for each exit but the last, that let go whoever reaches `threshold` here."""
        wanted = [(threshold - constant) / slope for constant, slope in self.lines[:-1]]
        return tuple(
            math.inf if odds > SURE else -math.inf if odds <= -SURE else 1 / (1 + math.exp(-odds)) for odds in wanted
        )


def log_odds(score: Tensor) -> Tensor:
    """Of scores in 0..1."""
    return torch.logit(score, eps=1 / (1 + math.exp(SURE)))
