"""P-values and bounds of a risk, from the rows it was measured on."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def hoeffding_bentkus(rows: int, level: float) -> Tensor:
    """Return the p-values (N+1,) of 0..N losses among N rows, for "the risk is above level".

    min(exp(-n kl(min(k/n, a), a)), e P(Binomial(n, a) <= k)) (Learn then Test, proposition 2, after Bates et al. 2021).
    """
    share = (torch.arange(rows + 1, dtype=torch.float64) / rows).clamp(max=level)
    hoeffding = (-rows * _divergence(share, level)).exp()
    return torch.minimum(hoeffding, math.e * binomial(rows, level)).clamp(max=1)


def binomial(rows: int, level: float) -> Tensor:
    """Return the p-values (N+1,) of 0..N losses among N rows: P(Binomial(n, a) <= k), exact for losses of 0 and 1."""
    lost = torch.arange(rows + 1, dtype=torch.float64)
    total = torch.tensor(rows, dtype=torch.float64)
    ways = (total + 1).lgamma() - (lost + 1).lgamma() - (total - lost + 1).lgamma()
    return (ways + lost * math.log(level) + (total - lost) * math.log1p(-level)).exp().cumsum(dim=0).clamp(max=1)


def conformal(rows: int) -> Tensor:
    """Return the bounds (N+1,) on the mean risk over draws, for 0..N losses among N rows: (k + 1) / (n + 1).

    Angelopoulos, Bates, Fisch, Lei and Schuster, "Conformal Risk Control", ICLR 2024, arXiv:2208.02814, equation 4.
    """
    return torch.arange(1, rows + 2, dtype=torch.float64) / (rows + 1)


def betting(losses: Tensor, level: float, delta: float) -> float:
    """Return the p-value of losses (N,) in 0..1, drawn independently, for "their mean is above level".

    A bet that the mean is lower has a capital that is a supermartingale if the mean is not lower; then it grows by 1/p
    with probability p at most. Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting",
    JRSS B 2024, arXiv:2010.09686, with the stakes of Bates et al., "Distribution-Free, Risk-Controlling Prediction
    Sets", JACM 2021, arXiv:2101.02703 (section 3.1.3). `delta` sets the stakes; the p-value holds for any.
    """
    lost = losses.double()
    number = torch.arange(1, len(lost) + 1, dtype=torch.float64)
    mean = (0.5 + lost.cumsum(dim=0)) / (number + 1)
    variance = (0.25 + (lost - mean).square().cumsum(dim=0)) / (number + 1)
    before = torch.cat((torch.tensor([0.25], dtype=torch.float64), variance[:-1]))  # a stake depends on the past alone
    stakes = (2 * math.log(1 / delta) / (len(lost) * before)).sqrt().clamp(max=1)
    capital = torch.log1p(-stakes * (lost - level)).cumsum(dim=0).max()
    return math.exp(-max(capital.item(), 0.0))


def _divergence(share: Tensor, level: float) -> Tensor:
    """Return Kullback and Leibler's divergence between two Bernoulli variables."""
    return torch.xlogy(share, share / level) + torch.xlogy(1 - share, (1 - share) / (1 - level))
