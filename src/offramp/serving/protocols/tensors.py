"""Tensors of the Open Inference Protocol: JSON values, or bytes behind the JSON (Triton's extension)."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from offramp.data.padding import Array
from offramp.serving.request import Refusal

_LENGTH = struct.Struct("<I")


@final
@dataclass(frozen=True, eq=False)
class Tensor:
    """A tensor of an answer.

    Attributes:
        shape: of it.
        values: texts in row-major order, or numbers, float32.
    """

    shape: tuple[int, ...]
    values: Sequence[str] | Array

    @property
    def datatype(self) -> str:
        """Return the protocol's name of the type."""
        return "FP32" if isinstance(self.values, np.ndarray) else "BYTES"

    def to_json(self) -> list[str | float]:
        """Return the values in row-major order."""
        return self.values.ravel().tolist() if isinstance(self.values, np.ndarray) else list(self.values)

    def to_bytes(self) -> bytes:
        """Return the values as binary data, little-endian; before a text stands its length in bytes."""
        if isinstance(self.values, np.ndarray):
            return self.values.astype("<f4").tobytes()
        encoded = [text.encode() for text in self.values]
        return b"".join(part for text in encoded for part in (_LENGTH.pack(len(text)), text))


def texts_of(data: bytes, name: str) -> list[str]:
    """Return the texts of binary data.

    Args:
        data: of a tensor of BYTES.
        name: of the tensor, for messages.

    Raises:
        Refusal: a length does not fit, or a text is not UTF-8.
    """
    texts: list[str] = []
    offset = 0
    while offset < len(data):
        begin = offset + _LENGTH.size
        end = begin + _LENGTH.unpack_from(data, offset)[0] if begin <= len(data) else begin
        if end > len(data):
            missing = end - len(data)
            raise Refusal("malformed", f"input {name!r}: text {len(texts)} lacks {missing} bytes of its binary data")
        try:
            texts.append(data[begin:end].decode())
        except UnicodeDecodeError as error:
            raise Refusal("malformed", f"input {name!r}: text {len(texts)} is not UTF-8: {error.reason}") from None
        offset = end
    return texts
