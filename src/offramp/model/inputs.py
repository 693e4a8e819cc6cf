"""Checks of what a forward pass is given."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from offramp.errors import InvalidInput


def check_inputs(inputs: Mapping[str, Tensor], main_input: str) -> None:
    """Refuse inputs that are not the encoder's.

    Args:
        inputs: of a forward pass, by name.
        main_input: "input_ids", or "pixel_values" of images.

    Raises:
        InvalidInput: not exactly one of those that the encoder reads.
    """
    wanted = ("input_ids", "inputs_embeds") if main_input == "input_ids" else (main_input,)
    given = [name for name in ("input_ids", "inputs_embeds", "pixel_values") if name in inputs]
    if len(given) != 1 or given[0] not in wanted:
        raise InvalidInput(f"this model takes {' or '.join(wanted)}; got {' and '.join(given) or 'neither'}")


def refuse_arguments(**arguments: object) -> None:
    """Raise InvalidInput for an argument that is not None: transformers has it, and models with exits do not."""
    for name, value in arguments.items():
        if value is not None:
            raise InvalidInput(f"a model with exits does not take {name}; its encoder, model.backbone, may")
