"""The files of a model's folder that answers depend on: weights, configuration, tokenizer. Needs no torch."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from offramp.errors import InvalidInput
from offramp.types.fingerprint import (
    LEXICAL,
    SAMPLED_BYTES,
    Fingerprint,
    config_digest,
    digest_of_lines,
    layers_of,
    pieces,
    tensor_digest,
    weights_fingerprint,
)

CONFIG_FILE, TOKENIZER_FILE = "config.json", "tokenizer.json"
WEIGHTS_FILE, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
VOCABULARIES = (
    *("vocab.txt", "vocab.json", "merges.txt", "added_tokens.json"),
    *("spm.model", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model"),
)
"""Files of a tokenizer that has no TOKENIZER_FILE."""
POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class ModelContent:
    """The files of a model's folder, read when they are asked for.

    Attributes:
        folder: a local folder; files may be links.
    """

    folder: Path

    @cached_property
    def weight_files(self) -> tuple[Path, ...]:
        """Return the files with the weights, in the order of their names; () if there are none.

        Raises:
            InvalidInput: the index names a file that is not there.
        """
        if (self.folder / WEIGHTS_FILE).exists():
            return (self.folder / WEIGHTS_FILE,)
        index = self.folder / WEIGHTS_INDEX
        if not index.exists():
            return ()
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InvalidInput(f"{index}: not an index of weights ({error!r})") from None
        missing = [name for name in names if not (self.folder / name).exists()]
        if missing:
            raise InvalidInput(f"{index}: names {missing[0]}, and there is no such file")
        return tuple(self.folder / name for name in names)

    @cached_property
    def config(self) -> dict[str, Any]:
        """Return the data of config.json.

        Raises:
            InvalidInput: there is none, or it is not JSON with a list of layers.
        """
        path = self.folder / CONFIG_FILE
        try:
            data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8-sig"))
        except (OSError, ValueError) as error:
            raise InvalidInput(f"{path}: not a readable configuration ({error})") from None
        if not isinstance(data, dict) or not isinstance(data.get("exit_layers", []), list):
            raise InvalidInput(f"{path}: not the configuration of a model (exit_layers must be a list of layers)")
        return data

    @property
    def layers(self) -> list[int] | None:
        """Return the layer number of each exit, 0 = before the first layer; None where there is no model with exits."""
        has_exits = (self.folder / CONFIG_FILE).exists() and "exit_layers" in self.config
        return layers_of(self.config) if has_exits else None

    @cached_property
    def samples(self) -> dict[str, str]:
        """Return a digest of a sample of each tensor, by name."""
        return self._digests(whole=False)

    @cached_property
    def bytes(self) -> dict[str, str]:
        """Return a digest of all bytes of each tensor, by name."""
        return self._digests(whole=True)

    def _digests(self, whole: bool) -> dict[str, str]:
        return {name: value for path in self.weight_files for name, value in tensor_digests(path, whole).items()}

    @property
    def parameters(self) -> int:
        """Return the number of parameters, from the heads of the files.

        Running means and counts are none, nor are the integers of the exit before the first layer.
        """
        shapes = {name: span.shape for path in self.weight_files for name, span in spans(path).items()}
        return sum(
            _product(shape)
            for name, shape in shapes.items()
            if not name.endswith(("running_mean", "running_var", "num_batches_tracked"))
            and not name.startswith(LEXICAL)
        )

    def weights(self, exit_layers: Sequence[int] | None = None, whole: bool = False) -> str | None:
        """Return the fingerprint of the encoder and of some exits (None = all); None where there are no weights."""
        if not self.weight_files:
            return None
        if "exit_layers" not in self.config:
            raise InvalidInput(f"{self.folder / CONFIG_FILE}: no exit_layers; not the configuration of these weights")
        return weights_fingerprint(self.bytes if whole else self.samples, self.config, exit_layers)

    @property
    def file_digest(self) -> str | None:
        """Return the SHA-256 of the files with the weights, one after the other; None where there are none."""
        if not self.weight_files:
            return None
        digest = hashlib.sha256()
        for path in self.weight_files:
            with path.open("rb") as file:
                while chunk := file.read(1 << 20):
                    digest.update(chunk)
        return digest.hexdigest()

    @property
    def tokenizer(self) -> str | None:
        """Return the digest of the tokenizer's vocabulary and rules; None where there is no tokenizer.

        The length to which the tokenizer last cut or padded is in its file too, and not in the digest.
        """
        path = self.folder / TOKENIZER_FILE
        if path.exists():
            content = path.read_bytes()
            rules = content.find(b'"added_tokens"', 0, SAMPLED_BYTES)  # version, truncation and padding come before
            return hashlib.sha256(content[max(rules, 0) :]).hexdigest()
        files = [self.folder / name for name in VOCABULARIES if (self.folder / name).exists()]
        lines = [f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}" for path in files]
        return digest_of_lines(lines) if lines else None

    def fingerprint(self, exit_layers: Sequence[int] | None = None, whole: bool = True) -> Fingerprint | None:
        """Return the fingerprint of an operating point of this model; None where there is no model with exits.

        Args:
            exit_layers: whose exits it reads; None = all.
            whole: read every byte for its `content`.
        """
        if not self.weight_files or self.layers is None:
            return None
        layers = tuple(self.layers if exit_layers is None else exit_layers)
        content = self.weights(layers, whole=True) if whole else None
        config = config_digest(self.config, exits=False, lexical=0 in layers)
        return Fingerprint(str(self.weights(layers)), content, config, layers)

    def difference(self, recorded: Fingerprint, whole: bool = False) -> str | None:
        """Return what of the model is not what an operating point was chosen for; None if all of it is.

        Where the weights are not there, they are not compared.
        """
        if config_digest(self.config, exits=False, lexical=0 in recorded.exit_layers) != recorded.config:
            return "another configuration"
        if self.weights(recorded.exit_layers) not in (None, recorded.weights):
            return "other weights"
        if whole and recorded.content is not None and self.weights(recorded.exit_layers, whole) != recorded.content:
            return "other weights"
        return None


@dataclass(frozen=True)
class Span:
    """The bytes of a tensor in a file.

    Attributes:
        kind: its element type and its shape, as text.
        shape: the shape.
        start: the first byte.
        end: the byte after the last one.
    """

    kind: str
    shape: tuple[int, ...]
    start: int
    end: int


def is_pointer(path: Path) -> bool:
    """Return True where Git LFS has not loaded a file yet."""
    with path.open("rb") as file:
        return file.read(len(POINTER)) == POINTER


def spans(path: Path) -> dict[str, Span]:
    """Return where the tensors of a safetensors file are, by name.

    Raises:
        InvalidInput: it is not such a file, or it is cut.
    """
    if is_pointer(path):
        raise InvalidInput(f"{path}: a pointer of Git LFS; `git lfs pull` loads the file itself")
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > 100_000_000:
                raise ValueError("its head is too long")
            head = json.loads(file.read(length))
            size = os.fstat(file.fileno()).st_size
        tensors = {name: entry for name, entry in head.items() if name != "__metadata__"}
        offset = 8 + length
        result = {
            name: Span(
                f"{entry['dtype']} {list(entry['shape'])}",
                tuple(entry["shape"]),
                offset + entry["data_offsets"][0],
                offset + entry["data_offsets"][1],
            )
            for name, entry in tensors.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidInput(f"{path}: not a readable safetensors file ({error})") from None
    end = max((span.end for span in result.values()), default=offset)
    if size != end:
        raise InvalidInput(f"{path}: {size:,} bytes, and its head names {end:,}; the file is cut or damaged")
    return result


def tensor_digests(path: Path, whole: bool = False) -> dict[str, str]:
    """Return a digest of each tensor of a safetensors file, by name."""
    with path.open("rb", buffering=0) as file:
        return {
            name: tensor_digest(span.kind, pieces(file, span.start, span.end, whole))
            for name, span in spans(path).items()
        }


def _product(shape: Iterable[int]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product
