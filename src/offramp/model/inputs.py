"""Checks of the arguments of a forward pass."""

from __future__ import annotations

import torch
from torch import Tensor

from offramp.data.batching import refuse_unknown_ids
from offramp.errors import InvalidInput


def inputs_for(main_input: str, **optional: Tensor | None) -> dict[str, Tensor]:
    """Return the inputs that are not None.

    Args:
        main_input: of the encoder: "input_ids", or "pixel_values" of images.
        optional: by name.

    Raises:
        InvalidInput: not exactly one of the inputs that the encoder reads, or a mask of another shape.
    """
    inputs = {name: value for name, value in optional.items() if value is not None}
    wanted = ("input_ids", "inputs_embeds") if main_input == "input_ids" else (main_input,)
    names = [name for name in ("input_ids", "inputs_embeds", "pixel_values") if name in inputs]
    if len(names) != 1 or names[0] not in wanted:
        raise InvalidInput(f"this model takes {' or '.join(wanted)}; got {' and '.join(names) or 'neither'}")
    shape, mask = inputs[names[0]].shape[:2], inputs.get("attention_mask")
    if mask is not None and mask.shape != shape:  # transformers would fill a mask that is too short
        raise InvalidInput(f"attention_mask must be {tuple(shape)}, as {names[0]}; got {tuple(mask.shape)}")
    return inputs


def refuse_arguments(**arguments: object) -> None:
    """Raise InvalidInput for an argument that is not None: transformers has it, and models with exits do not."""
    for name, value in arguments.items():
        if value is not None:
            raise InvalidInput(f"a model with exits does not take {name}; its encoder, model.backbone, may")


def check_token_ids(ids: Tensor, rows: int) -> None:
    """Refuse token ids without a row in the embedding; only on the CPU, since a GPU would have to wait.

    Raises:
        InvalidInput: an id below 0 or beyond the last row.
    """
    if ids.device.type != "cpu" or not ids.numel() or torch.compiler.is_compiling() or torch.compiler.is_exporting():
        return
    least, most = map(int, torch.aminmax(ids))
    refuse_unknown_ids(least, most, rows)
