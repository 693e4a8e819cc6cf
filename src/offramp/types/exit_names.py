"""Exits in words; the exit at layer 0 is the lexical one, before the first layer. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence

LEXICAL = "a linear classifier on the words of a text, before the first layer"


def exit_title(layer: int) -> str:
    """Return the title of an exit's column: "layer 3" or "before layer 1 (lexical)"."""
    return f"layer {layer}" if layer else "before layer 1 (lexical)"


def exit_time(layer: int) -> str:
    """Return when a row leaves at an exit: "after layer 3" or "before layer 1"."""
    return f"after layer {layer}" if layer else "before layer 1"


def mean_exit_title(layers: Sequence[int]) -> str:
    """Return the title of an axis from the first of these layers to the last."""
    return f"mean exit layer (of {layers[-1]}" + (")" if layers[0] else "; 0 = before layer 1)")


def layers_text(layers: Sequence[int]) -> str:
    """Return layer numbers as text: "0 (lexical), 1, 2"."""
    return ", ".join(str(layer) if layer else "0 (lexical)" for layer in layers)
