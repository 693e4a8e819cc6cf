"""The fingerprint of a model in memory, for points that were loaded with it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from offramp.errors import InvalidInput
from offramp.types.fingerprint import digest_of_lines, sampled, tensor_digest


@torch.no_grad()
def weights_in_memory(model: nn.Module) -> tuple[str, str]:
    """Return the element types of a model's weights, and a digest of a sample of each."""
    state = model.state_dict()
    kinds = " ".join(sorted({str(weight.dtype) for weight in state.values()}))
    return kinds, digest_of_lines(f"{name} {_digest(weight)}" for name, weight in sorted(state.items()))


def refuse_changed_weights(model: nn.Module, loaded: tuple[str, str] | None, point: str) -> None:
    """Refuse the name of a point that was loaded with other weights than a model has now.

    Args:
        model: in memory; in another precision than it was loaded in, it is not compared.
        loaded: `weights_in_memory` when its points were loaded; None = not known.
        point: the name.

    Raises:
        InvalidInput: the weights have changed.
    """
    if loaded is None:
        return
    kinds, weights = weights_in_memory(model)
    if kinds == loaded[0] and weights != loaded[1]:
        raise InvalidInput(
            f"the weights have changed since operating point {point!r} was loaded; `offramp.calibrate` on a new trace "
            "chooses it anew"
        )


def _digest(weight: Tensor) -> str:
    flat = weight.detach().contiguous().reshape(-1).view(torch.uint8)
    sample = torch.cat([flat[start:end] for start, end in sampled(len(flat))]).cpu()
    return tensor_digest(f"{weight.dtype} {list(weight.shape)}", [sample.numpy().tobytes()])
