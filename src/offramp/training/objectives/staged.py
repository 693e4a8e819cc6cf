"""Two stages one after the other, or two objectives in turn.

Two-stage: Xin et al., "DeeBERT: Dynamic Early Exiting for Accelerating BERT Inference", ACL 2020, section 2.2; a
baseline of Xin et al., "BERxiT: Early Exiting for BERT with Better Fine-Tuning and Extension to Regression", EACL 2021.
Alternating: BERxiT, section 3, eq. 6 and 7 (two-stage is eq. 4 and 5).

Differs from BERxiT's code, which counts steps within the epoch, so that the turns start again with each, and leaves the
last exit out of the joint turns; here the turns follow the optimiser's steps through the whole run, however many
batches a step accumulates and wherever it is resumed, and the joint turns have all exits, as in the paper.
"""

from dataclasses import dataclass
from typing import final

from torch import Tensor

from offramp.model.losses import exit_losses
from offramp.training.objectives.base import FREEZING, Objective, Stage
from offramp.types.outputs import ExitOutput


@final
@dataclass(frozen=True, kw_only=True)
class TwoStage(Objective):
    """First L_n, then, with backbone and last exit frozen, sum_{i<n} L_i: the last exit's answers stay as they were.

    Attributes:
        freeze: the second stage alone, for a model that is fine-tuned already.
    """

    freeze: bool = False

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Return `FREEZING`, or its second stage with `freeze`."""
        return FREEZING[1:] if self.freeze else FREEZING

    def loss(self, stage: Stage, step: int, exits: ExitOutput, labels: Tensor) -> Tensor:
        """Return the last exit's loss in the first stage, the sum of the others in the second."""
        losses = exit_losses(exits, labels)
        return losses[-1] if stage is FREEZING[0] else losses[:-1].sum()


@final
@dataclass(frozen=True)
class Alternating(Objective):
    """L_n at steps 0, 2, ... and sum_i L_i at steps 1, 3, ..."""

    def loss(self, stage: Stage, step: int, exits: ExitOutput, labels: Tensor) -> Tensor:
        """Return the last exit's loss at even steps, the sum of all at odd ones."""
        losses = exit_losses(exits, labels)
        return losses[-1] if step % 2 == 0 else losses.sum()
