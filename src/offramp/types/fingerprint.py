"""Fingerprints of a model's files, by content: weights, configuration, tokenizer. Needs no torch.

A tensor's digest is the SHA-256 of its type, its shape and its bytes: all of them up to `WHOLE_BYTES`, else `PIECES`
pieces at even distances, together `SAMPLED_BYTES`. So weights are compared in milliseconds when a model is loaded; with
`whole=True` every byte is read. The fingerprint of the weights is a digest of the tensors' digests. Names of tensors
count by their order and by the numbers of layers and exits in them, so neither shards nor a version of transformers
that renames a part of the model change it. Exits bear their layer's number there: a fingerprint of some exits stays
what it is where others are added.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import FileIO
from typing import Any, BinaryIO

WHOLE_BYTES, SAMPLED_BYTES, PIECES = 16384, 4096, 16
CHUNK = 1 << 20

TRAINING_ONLY = {"initializer_range", "gradient_checkpointing", "layer_norm_init"}
OF_NO_ANSWER = {
    *("transformers_version", "architectures", "dtype", "torch_dtype", "_name_or_path", "name_or_path", "format"),
    *("use_cache", "return_dict", "output_hidden_states", "output_attentions", "_attn_implementation"),
    *TRAINING_ONLY,
}
"""Keys of a configuration that no answer depends on; so do those with "dropout" in them and those that are empty."""
CLASS_NAMES = {"id2label", "label2id"}
LEXICAL = "lexical_exit."  # begins the names of the tensors of the exit before the first layer
OF_AN_EXIT = re.compile(r"(heads\.(?:classifiers|attentions|poolers)|bypasses)\.(\d+)\.(.+)")


@dataclass(frozen=True)
class Fingerprint:
    """The part of a model that an operating point was chosen for.

    Attributes:
        weights: of the encoder and of the exits below, from a sample of each tensor.
        content: the same from every byte; None = not read yet.
        config: of the configuration, but for its class names and the layers of its exits; the exit before the first
            layer counts where the point reads it.
        exit_layers: the layers whose exits the point reads, 0 = before the first layer.
    """

    weights: str
    content: str | None
    config: str
    exit_layers: tuple[int, ...]

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Fingerprint:
        """Read the fields as JSON has them."""
        return cls(**{**data, "exit_layers": tuple(data["exit_layers"])})


def pieces(file: BinaryIO | FileIO, start: int, end: int, whole: bool) -> Iterator[bytes]:
    """Yield the bytes of a file from `start` to `end` that a digest reads; fewer where the file is shorter."""
    chunks = (
        [(at, min(at + CHUNK, end - start)) for at in range(0, end - start, CHUNK)] if whole else sampled(end - start)
    )
    for first, last in chunks:
        file.seek(start + first)
        yield file.read(last - first)


def tensor_digest(kind: str, parts: Iterable[bytes]) -> str:
    """Return the digest of a tensor's type, shape and bytes."""
    digest = hashlib.sha256(kind.encode())
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def sampled(size: int) -> list[tuple[int, int]]:
    """Return the first byte and the end of each piece of a tensor of `size` bytes that its digest reads."""
    if size <= WHOLE_BYTES:
        return [(0, size)]
    length = SAMPLED_BYTES // PIECES
    starts = (number * (size - length) // (PIECES - 1) for number in range(PIECES))
    return [(start, start + length) for start in starts]


def weights_fingerprint(
    digests: Mapping[str, str], config: Mapping[str, Any], exit_layers: Sequence[int] | None = None
) -> str:
    """Return the fingerprint of a model's tensors.

    Args:
        digests: of the tensors, by name.
        config: the data of the model's config.json.
        exit_layers: the layers whose exits count; None = all.
    """
    layers = layers_of(config)
    read = set(layers if exit_layers is None else exit_layers)
    if config.get("memory") is not None:  # which mixes the exits behind layers
        read.update(config["exit_layers"])
    shared, of_exits = [], []
    for name, digest in sorted(digests.items()):
        exit = _exit_of(name, config)
        if exit is None:
            numbers = [part for part in name.split(".") if part.isdigit()]
            shared.append(f"{'.'.join(numbers)} {digest}")
        elif exit[1] in read:
            of_exits.append(f"{exit[0]} after layer {exit[1]} {exit[2]} {digest}")
    return digest_of_lines([*shared, *sorted(of_exits)])


def layers_of(config: Mapping[str, Any]) -> list[int]:
    """Return the layer number of each exit, by the data of a model's config.json; 0 = before the first layer."""
    return [*([] if config.get("lexical") is None else [0]), *config["exit_layers"]]


def _exit_of(name: str, config: Mapping[str, Any]) -> tuple[str, int, str] | None:
    """Return the part, the layer of its exit and the name inside, of a tensor that belongs to one exit alone."""
    if name.startswith(LEXICAL):
        return "lexical_exit", 0, name.removeprefix(LEXICAL)
    match = OF_AN_EXIT.fullmatch(name)
    if match is None or (match[1] == "heads.poolers" and config.get("head") != "pooler"):
        return None
    layers: Sequence[int] = config["exit_layers"]
    return match[1], layers[int(match[2])] if int(match[2]) < len(layers) else -1, match[3]


def config_digest(config: Mapping[str, Any], exits: bool = True, lexical: bool = True) -> str:
    """Return the digest of what answers depend on in a configuration, but for the names of its classes.

    Args:
        config: the data of config.json.
        exits: False leaves out the layers that have exits.
        lexical: False leaves out the exit before the first layer.
    """
    left_out = CLASS_NAMES | (set() if exits else {"exit_layers"}) | (set() if lexical else {"lexical"})
    return hashlib.sha256(json.dumps(_acting(config, left_out), sort_keys=True).encode()).hexdigest()


def class_names_digest(config: Mapping[str, Any]) -> str:
    """Return the digest of the names of a model's classes, in the order of their numbers."""
    names = config.get("id2label") or {}
    return digest_of_lines(json.dumps([int(number), str(names[number])]) for number in sorted(names, key=int))


def _acting(data: Mapping[str, Any], left_out: set[str]) -> dict[str, Any]:
    return {
        key: _acting(value, CLASS_NAMES) if isinstance(value, Mapping) else value
        for key, value in data.items()
        if key not in OF_NO_ANSWER | left_out
        and "dropout" not in key
        and not (value is None or value is False or value == [] or value == {})
    }


def digest_of_lines(lines: Iterable[str]) -> str:
    """Return the SHA-256 of lines of text, in hex."""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
