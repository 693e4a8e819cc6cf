"""The fingerprint of a model in memory, for points that were loaded with it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from offramp.errors import InvalidInput
from offramp.types.fingerprint import LEXICAL, digest_of_lines, sampled, tensor_digest


@dataclass(frozen=True)
class WeightsInMemory:
    """What is known of a model's weights at a moment.

    Attributes:
        kinds: the element types, but for those of the exit before the first layer.
        shared: a digest of a sample of each weight, but for that exit's.
        lexical: a digest of that exit's.
    """

    kinds: str
    shared: str
    lexical: str


@torch.no_grad()
def weights_in_memory(model: nn.Module) -> WeightsInMemory:
    """Return what `refuse_changed_weights` compares."""
    state = sorted(model.state_dict().items())
    shared = [(name, weight) for name, weight in state if not name.startswith(LEXICAL)]
    lexical = [(name, weight) for name, weight in state if name.startswith(LEXICAL)]
    kinds = " ".join(sorted({str(weight.dtype) for _, weight in shared}))
    digests = (digest_of_lines(f"{name} {_digest(weight)}" for name, weight in part) for part in (shared, lexical))
    return WeightsInMemory(kinds, *digests)


def refuse_changed_weights(model: nn.Module, loaded: WeightsInMemory | None, point: str, lexical: bool) -> None:
    """Refuse the name of a point that was loaded with other weights than a model has now.

    Args:
        model: in memory; in another precision than it was loaded in, it is not compared.
        loaded: `weights_in_memory` when its points were loaded; None = not known.
        point: the name.
        lexical: the point reads the exit before the first layer.

    Raises:
        InvalidInput: the weights have changed.
    """
    if loaded is None:
        return
    now = weights_in_memory(model)
    changed = now.shared != loaded.shared or (lexical and now.lexical != loaded.lexical)
    if now.kinds == loaded.kinds and changed:
        raise InvalidInput(
            f"the weights have changed since operating point {point!r} was loaded; `offramp.calibrate` on a new trace "
            "chooses it anew"
        )


def _digest(weight: Tensor) -> str:
    flat = weight.detach().contiguous().reshape(-1).view(torch.uint8)
    sample = torch.cat([flat[start:end] for start, end in sampled(len(flat))]).cpu()
    return tensor_digest(f"{weight.dtype} {list(weight.shape)}", [sample.numpy().tobytes()])
