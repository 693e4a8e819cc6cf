"""BERxiT's analysis of confidence and BLEU, with an interval: needs the texts of the validation rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from claims_base import WEIGHTED
from claims_elsewhere import ABSENT, row
from claims_measure import counts_of, halves_of, interval, rounded
from claims_page import HIGHER
from offramp.studies.analyses import bleu
from offramp.studies.selection import EvaluationSplit
from study_cells import SEEDS, Case

EQUIVALENT = 1


def weighted_correlation(one: Tensor, other: Tensor, weights: Tensor) -> Tensor:
    """Return Pearson's correlation (R,) of values (N,) with weights (R, N); 0 where one of them is constant."""
    total = weights.sum(dim=-1).clamp(min=1)
    x, y = (values - (weights @ values / total).unsqueeze(-1) for values in (one, other))  # (R, N)
    covariance = (weights * x * y).sum(dim=-1)
    spread = (weights * x.square()).sum(dim=-1) * (weights * y.square()).sum(dim=-1)
    return torch.where(spread > 1e-9, covariance / spread.clamp(min=1e-9).sqrt(), 0.0)


def peak_less_last(split: EvaluationSplit, overlap: Tensor, counts: Tensor) -> Tensor:
    """Return by how much the correlation falls from its peak to the last exit, (1 + DRAWS,), mean over the halves.

    Over rows answered "equivalent". The exit with the peak is that of the half that chooses.
    """
    confidence, answers = split.trace.logits.double().softmax(dim=-1).max(dim=-1)  # (L, N)
    positive = (answers == EQUIVALENT).double()
    drops = []
    for chosen_on in halves_of(len(split.trace)):
        chooses = torch.zeros(len(split.trace), dtype=torch.float64)
        chooses[chosen_on] = 1
        on_half = [
            weighted_correlation(overlap, values, (chooses * mask).unsqueeze(0)).item()
            for values, mask in zip(confidence, positive, strict=True)
        ]
        peak, reported = on_half.index(max(on_half)), counts * (1 - chooses)
        drops.append(
            weighted_correlation(overlap, confidence[peak], reported * positive[peak])
            - weighted_correlation(overlap, confidence[-1], reported * positive[-1])
        )
    return torch.stack(drops).mean(dim=0)


def bleu_row(case: Case, split_of: Callable[[str, int], EvaluationSplit] | None, data: Path) -> dict[str, Any]:
    """Return the line of the claim; without figures where models or texts are not there.

    Args:
        case: MRPC.
        split_of: rows of a training with a seed; None where it has not run.
        data: the tasks.
    """
    found: dict[str, Any] = ABSENT
    if split_of is not None and (data / case.task).exists():
        texts = case.config(data, Path("runs/lexical")).held_out["validation"].texts
        overlap, counts = bleu(texts), counts_of(len(texts), case.task)
        draws = [peak_less_last(split_of(WEIGHTED, seed), overlap, counts) for seed in SEEDS]
        found = {**interval(torch.stack(draws).mean(dim=0)), "seeds": rounded([draw[0].item() for draw in draws])}
    return row(
        "berxit-16",
        "In MRPC, confidence in a paraphrase follows BLEU most in the early or middle layers, and less at the end.",
        "5.5, figure 8",
        "plotted, not printed; peak at layers 4 and 5 of 12",
        HIGHER,
        found,
        "claims.py",
        "claims.json",
        "Correlation of BLEU and confidence over the rows answered 1, at the exit where it is highest on the half that "
        f"chooses, less that at the last exit. Case {case.name}, depth-weighted training.",
        "of correlation",
    )
