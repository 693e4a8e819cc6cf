"""Analyses of the papers besides speed, as functions of a trace; BLEU needs the texts, too."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from offramp.errors import InvalidInput, NotApplicable
from offramp.types.outputs import ExitOutput, class_log_probs, predictions
from offramp.types.problem_types import SINGLE_LABEL
from offramp.types.trace import Trace, labels_of

QUARTILES = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Overthinking:
    """Entropy and error of the exits (PABEE, figure 2b).

    Attributes:
        entropy: (L,) mean entropy of the answers in nats.
        error: (L,) share of the rows answered wrong.
        became_wrong: share of all rows that some earlier exit answers right and the last one wrong.
    """

    entropy: Tensor
    error: Tensor
    became_wrong: float


def overthinking(trace: Trace) -> Overthinking:
    """Measure entropy and error by exit, and the rows that only an earlier exit answers right.

    Raises:
        InvalidInput: a trace without labels.
        NotApplicable: a regression.

    Source: Zhou et al., "BERT Loses Patience", NeurIPS 2020, section 3.1; the word is from Kaya et al., ICML 2019.
    """
    out = ExitOutput(trace.logits, problem_type=trace.problem_type)
    log_p = class_log_probs(out)  # (L, N, G, K)
    entropy = -(log_p.exp() * log_p).sum(dim=(-2, -1)).mean(dim=-1)
    labels = labels_of(trace).long().view(1, len(trace), -1)
    right = (predictions(out) == labels).all(dim=-1)  # (L, N)
    became_wrong = right[:-1].any(dim=0) & ~right[-1]
    return Overthinking(entropy, 1 - right.double().mean(dim=-1), became_wrong.double().mean().item())


def certainty_quartiles(trace: Trace) -> Tensor:
    """Return least, quartiles and largest of the learned certainty, (L, 5) (BERxiT, figure 7).

    Raises:
        InvalidInput: a trace of a model without a gate.
    """
    if trace.certainty is None:
        raise InvalidInput("the trace has no certainty: its model has no gate")
    return trace.certainty.double().quantile(torch.tensor(QUARTILES, dtype=torch.float64), dim=-1).T


def bleu(pairs: Sequence[tuple[str, str]]) -> Tensor:
    """Compute BLEU-4 of the second text of each pair against the first, (N,) in 0..100; short texts use fewer orders.

    Raises:
        InvalidInput: sacrebleu is not installed.
    """
    try:
        from sacrebleu import sentence_bleu
    except ImportError:
        raise InvalidInput("BLEU needs sacrebleu: pip install 'offramp[study]'") from None
    return torch.tensor([sentence_bleu(second, [first]).score for first, second in pairs], dtype=torch.float64)


def bleu_confidence(trace: Trace, pairs: Sequence[tuple[str, str]]) -> Tensor:
    """Correlate BLEU and confidence (Pearson), (L, 2), over the rows answered 0 and over those answered 1.

    NaN where an exit gives an answer to fewer than three rows, or where BLEU or confidence is constant.

    Args:
        trace: of two classes.
        pairs: its texts, in its order.

    Raises:
        InvalidInput: another number of pairs than rows.
        NotApplicable: another kind of problem.

    Source: Xin et al., "BERxiT", EACL 2021, section 5.5.
    """
    if trace.problem_type != SINGLE_LABEL or trace.logits.shape[-1] != 2:
        raise NotApplicable("BLEU against confidence is for a choice between two classes")
    if len(pairs) != len(trace):
        raise InvalidInput(f"{len(trace)} rows need as many pairs of texts, got {len(pairs)}")
    overlap = bleu(pairs)
    confidence, answers = trace.logits.double().softmax(dim=-1).max(dim=-1)  # (L, N)
    rows = [
        [_pearson(overlap[answers[exit] == label], confidence[exit][answers[exit] == label]) for label in (0, 1)]
        for exit in range(trace.depth)
    ]
    return torch.tensor(rows, dtype=torch.float64)


def _pearson(one: Tensor, other: Tensor) -> float:
    if len(one) < 3 or one.std() == 0 or other.std() == 0:
        return math.nan
    return torch.corrcoef(torch.stack((one, other)))[0, 1].item()
