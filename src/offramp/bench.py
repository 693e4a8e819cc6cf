"""Time on the clock: rivals in turn, so that a noisy machine is noisy for all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from offramp.model import MultiExitModel


def interleaved(rivals: Mapping[str, Callable[[int], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every call, by rival; each round runs all rivals once, after one round that does not count.

    Args:
        rivals: what to run, given the number of the round.
        rounds: how many times.
    """
    seconds: dict[str, list[float]] = {name: [] for name in rivals}
    for number in tqdm(range(rounds + 1), desc="measure", unit="round", disable=None, leave=False):
        for name, run in rivals.items():
            start = time.perf_counter()
            run(number)
            if number:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def median(values: Sequence[float]) -> float:
    """The middle value; of an even number, the mean of the two."""
    return torch.tensor(values, dtype=torch.float64).quantile(0.5).item()


@torch.inference_mode()
def plain(model: MultiExitModel, inputs: Mapping[str, Tensor]) -> Tensor:
    """The rival without exits, logits (B, C): transformers' own forward of the encoder, then the last head."""
    hidden = model.backbone(**inputs).last_hidden_state
    logits: Tensor = model.heads(len(model.layers) - 1, hidden, inputs["attention_mask"])
    return logits
