"""PABEE's Theorem 1 on when patience makes a model more accurate: its conditions, and the exact probabilities.

Zhou et al., "BERT Loses Patience: Fast and Robust Inference with Early Exit", NeurIPS 2020, arXiv:2006.04152, section
3.4 and appendices B and C. Two classes; n internal classifiers, each wrong with probability q, before a last one that
is wrong with probability p; all of them err independently. A sample leaves at the first internal classifier that ends a
row of t + 1 equal answers, else the last one answers.

The derivation. A sample that stays is answered as without early exit, so patience helps if P(leaves, wrong) < p
P(leaves). A row that starts at the first classifier gives P(leaves) >= q^(t+1) + (1-q)^(t+1) >= (1/2)^t. A wrong row
starts at the first classifier or follows a right answer, at n-t positions in all:
P(leaves, wrong) <= q^(t+1) (1 + (n-t-1) (1-q)).
With A = (1 / 2q)^t p/q it is therefore enough that

    n - t < (A - q) / (1 - q)                                                                            (derived)

The paper prints this, as its equation 11, and then goes on "< A - q". That step is the wrong way round: to divide by
1 - q < 1 makes a positive number larger. What it ends with is still enough, because it is stricter. The paper states
the condition three times, each time differently: with A - q at the end of the proof, with A - p in the theorem, and
with (1 / 2q)^(t+1) p - q = A / 2 - q at the head of the proof. Where a row fits at all (n > t), each of the three
implies the derived one (A - p because it asks for A > 1 + p, and then (A - q) / (1 - q) > A - p), so each is enough;
none is necessary. For n <= t no sample leaves early and nothing improves, though the conditions may hold: they need
n > t.

What matters more: errors of the exits of one model are not independent. Hard samples are hard for all of them; then
rows of equal wrong answers are common, and the conclusion fails while the condition holds (`shared` below).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from offramp.errors import InvalidInput
from offramp.policies.patience import Patience
from offramp.policies.replay import replay
from offramp.types.trace import Trace


@dataclass(frozen=True)
class Setting:
    """The theorem's parameters, and the share of samples with dependent errors.

    Attributes:
        internal: n, the number of internal classifiers, at least 1.
        patience: t, the number of repeats of an answer in a row before an exit, at least 1.
        internal_error: q, the error rate of each internal classifier, inside 0..1.
        last_error: p, the error rate of the last classifier, inside 0..1.
        shared: share of the samples on which all internal classifiers give one answer; the theorem has 0. Each is
            still wrong with probability q, and the last one still independent.
    """

    internal: int
    patience: int
    internal_error: float
    last_error: float
    shared: float = 0.0

    def __post_init__(self) -> None:
        if self.internal < 1 or self.patience < 1:
            raise InvalidInput(f"internal and patience must be at least 1, got {self.internal} and {self.patience}")
        if not (0 < self.internal_error < 1 and 0 < self.last_error < 1 and 0 <= self.shared <= 1):
            raise InvalidInput(f"errors must lie inside 0..1 and shared in 0..1, got {self}")


@dataclass(frozen=True)
class Outcome:
    """The effect of patience: the shares that leave early, that leave early and are wrong, that are wrong in all."""

    leaves: float
    leaves_wrong: float
    error: float


def conditions(setting: Setting) -> dict[str, bool]:
    """Return for each version of Theorem 1 if it implies that patience improves the accuracy; all assume n > t."""
    q, p, t = setting.internal_error, setting.last_error, setting.patience
    ratio = (1 / (2 * q)) ** t * p / q  # A
    right_sides = {
        "derived": (ratio - q) / (1 - q),
        "proof's end": ratio - q,
        "theorem": ratio - p,
        "proof's head": (1 / (2 * q)) ** (t + 1) * p - q,
    }
    return {name: setting.internal - t < side for name, side in right_sides.items()}


def exact(setting: Setting) -> Outcome:
    """Compute the probabilities, by following the runs of equal answers from exit to exit.

    Patience improves the accuracy exactly if `error` is less than the setting's `last_error`.
    """
    q, t = setting.internal_error, setting.patience
    wrong, right = [0.0] * t, [0.0] * t  # P(not left, in a run of 1..t wrong answers), and of right ones
    leaves = leaves_wrong = 0.0
    for exit in range(setting.internal):
        if exit == 0:
            wrong_now, right_now = [q], [1 - q]
        else:
            wrong_now = [q * sum(right), *(q * chance for chance in wrong)]
            right_now = [(1 - q) * sum(wrong), *((1 - q) * chance for chance in right)]
        wrong_now, right_now = ([*row, *[0.0] * (t + 1 - len(row))] for row in (wrong_now, right_now))
        leaves_wrong += wrong_now[t]
        leaves += wrong_now[t] + right_now[t]
        wrong, right = wrong_now[:t], right_now[:t]
    if setting.internal > t:  # those that share one answer leave at exit t + 1
        leaves += setting.shared * (1 - leaves)
        leaves_wrong += setting.shared * (q - leaves_wrong)
    return Outcome(leaves, leaves_wrong, leaves_wrong + (1 - leaves) * setting.last_error)


def simulate(setting: Setting, samples: int, seed: int) -> Outcome:
    """Estimate the same by Monte Carlo, through the policy itself: draw the errors, replay `Patience`, count."""
    random = torch.Generator().manual_seed(seed)
    n = setting.internal
    wrong = torch.rand(n, samples, generator=random) < setting.internal_error  # (n, N)
    alike = torch.rand(samples, generator=random) < setting.shared
    wrong = torch.where(alike, wrong[:1], wrong)
    last = torch.rand(1, samples, generator=random) < setting.last_error
    answers = replay(Trace(F.one_hot(torch.cat((wrong, last)).long(), 2).float()), Patience(), setting.patience)
    answered_wrong = answers.logits.argmax(dim=-1) == 1
    early = answers.exit_layers <= n
    shares = (early, early & answered_wrong, answered_wrong)
    return Outcome(*(share.double().mean().item() for share in shares))


def needed_accuracy(layers: int, patience: int, accuracy: float) -> float:
    """Return the accuracy that `layers` equal, independent classifiers need for patience to reach `accuracy`.

    Appendix C's question; `accuracy` is one classifier's, so the distance of a result below it is the gain
    of patience. By bisection.
    """
    low, high = 0.5, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if 1 - exact(Setting(layers - 1, patience, 1 - middle, 1 - middle)).error < accuracy:
            low = middle
        else:
            high = middle
    return high
