"""Label thresholds as log-odds. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

from offramp.errors import InvalidInput


def log_odds(label_thresholds: Sequence[float], outputs: int) -> list[float]:
    """Return log(p / (1 - p)) of label thresholds: a label is part of an answer where its logit is larger.

    Args:
        label_thresholds: probabilities above 0, below 1.
        outputs: of the model, C.

    Raises:
        InvalidInput: another number of thresholds than C.
    """
    if len(label_thresholds) != outputs:
        raise InvalidInput(f"{len(label_thresholds)} label thresholds for a model with {outputs} outputs")
    return [math.log(value) - math.log1p(-value) for value in label_thresholds]
