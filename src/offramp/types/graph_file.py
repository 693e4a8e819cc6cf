"""Exported graphs as files: their names, their metadata, what they were made of. Needs no torch and no runtime.

An ONNX file is a protobuf message. Its metadata is read here, and the name of the file with its weights is changed
here, without the packages that could do so: that takes milliseconds, importing them takes longer.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from offramp.errors import InvalidInput
from offramp.types.fingerprint import class_names_digest, config_digest, pieces, tensor_digest
from offramp.types.model_content import ModelContent, is_pointer

ONNX_GRAPHS = {"onnx": "model.onnx", "onnx-int8": "model.int8.onnx"}
GRAPHS = {**ONNX_GRAPHS, "openvino": "openvino/model.xml"}
"""Engines that run an exported file -> the file's name in a model's folder."""
RANGES_FILE = "activation_ranges.json"
"""The file beside the weights from which int8 takes its scales (`offramp.model.activation_ranges`)."""
WEIGHTS = ".data"  # ending of the file with the weights of an ONNX graph
ABOUT = "offramp"
"""The key under which the file's metadata has offramp's."""
SOURCE = "offramp.source"
"""The key under which the file's metadata has its `GraphSource`; files of earlier versions have none."""

_METADATA = 14  # number of the field of ModelProto
_INSIDE = {
    "model": {7: "graph"},
    "graph": {1: "node", 5: "tensor"},
    "node": {5: "attribute"},
    "attribute": {6: "graph"},
    "tensor": {13: "external data"},
    "external data": {},
}
"""Messages of ONNX in which the name of the file with the weights may be: number of a field -> what it holds."""


@dataclass(frozen=True)
class GraphSource:
    """What a graph was made of. The exit before the first layer counts where the graph holds it.

    Attributes:
        weights: the fingerprint of the model's weights, from a sample of each tensor.
        content: the same from every byte.
        config: of the configuration, but for the names of the classes.
        classes: of the names of the classes.
        tokenizer: None where there was none.
        spans: first byte and length of each tensor in the file with the graph's weights.
        data: the digest of a sample of these tensors.
        data_content: the digest of all their bytes.
    """

    weights: str
    content: str
    config: str
    classes: str
    tokenizer: str | None
    spans: Sequence[Sequence[int]]
    data: str
    data_content: str

    @classmethod
    def of(
        cls, content: ModelContent, data: Path, spans: Sequence[Sequence[int]], layers: Sequence[int]
    ) -> GraphSource:
        """Describe a graph of the model in a folder.

        Args:
            content: of the folder.
            data: the file with the graph's weights.
            spans: first byte and length of each tensor in it.
            layers: of the exits that it holds.

        Raises:
            InvalidInput: there are no weights in the folder.
        """
        sample, whole = (content.weights(_compared(content, layers), whole) for whole in (False, True))
        if sample is None or whole is None:
            raise InvalidInput(f"{content.folder}: no weights as safetensors; save the model with save_pretrained")
        return cls(
            sample,
            whole,
            config_digest(content.config, lexical=0 in layers),
            class_names_digest(content.config),
            content.tokenizer,
            spans,
            _data_digest(data, spans, whole=False),
            _data_digest(data, spans, whole=True),
        )

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> GraphSource | None:
        """Read the entry of a file's metadata; None in a file of an earlier version."""
        return cls(**json.loads(metadata[SOURCE])) if SOURCE in metadata else None

    def to_metadata(self) -> dict[str, str]:
        """Return the entry of a file's metadata."""
        return {SOURCE: json.dumps(asdict(self))}

    def difference(self, content: ModelContent, layers: Sequence[int], whole: bool = False) -> str | None:
        """Return what of a folder's model is not what the graph was made of; None if all of it is.

        Weights or a tokenizer that are not there are not compared.

        Args:
            content: of the folder.
            layers: of the exits that the graph holds.
            whole: compare every byte.
        """
        if content.weights(_compared(content, layers), whole) not in (None, self.content if whole else self.weights):
            return "of other weights than those beside it"
        if config_digest(content.config, lexical=0 in layers) != self.config:
            return "for another configuration than the config.json beside it"
        if class_names_digest(content.config) != self.classes:
            return "for other class names than those in the config.json beside it"
        if self.tokenizer is not None and content.tokenizer not in (None, self.tokenizer):
            return "for another tokenizer than the one beside it"
        return None

    def data_difference(self, data: Path, whole: bool = False) -> str | None:
        """Return what is wrong with the file of a graph's weights; None if nothing is."""
        needed = max((start + length for start, length in self.spans), default=0)
        if is_pointer(data):
            return "a pointer of Git LFS; `git lfs pull` loads the file itself"
        size = data.stat().st_size
        if size < needed:
            return f"cut: {size:,} of {needed:,} bytes"
        if _data_digest(data, self.spans, whole) != (self.data_content if whole else self.data):
            return "not the weights that the graph beside it was written with"
        return None


def _compared(content: ModelContent, layers: Sequence[int]) -> Sequence[int] | None:
    """Return the layers whose exits a graph is compared with: all behind layers, the one before if it holds that."""
    return None if 0 in layers else content.config.get("exit_layers")


def weights_beside(graph: Path) -> Path:
    """Return the path of the file with a graph's weights."""
    return graph.with_suffix(".bin") if graph.suffix == ".xml" else graph.with_name(graph.name + WEIGHTS)


def model_folder(graph: Path) -> Path:
    """Return the folder of the model that a graph was made of."""
    return graph.parent.parent if graph.suffix == ".xml" else graph.parent


def stale(path: Path, content: ModelContent, whole: bool = False) -> str | None:
    """Return the reason why a graph must not answer for the model beside it, in words that begin with the file.

    Args:
        path: of the graph; the file with its weights lies beside it.
        content: of the folder.
        whole: compare every byte.

    Raises:
        InvalidInput: `offramp export` did not write the file.
    """
    metadata = read_metadata(path)
    about, source = json.loads(metadata[ABOUT]), GraphSource.from_metadata(metadata)
    layers = [*([0] if content.config.get("lexical") else []), *content.config.get("exit_layers", [])]
    if not set(about["layers"]) <= set(layers) or about["layers"][-1:] != layers[-1:]:  # it may leave out some
        return f"{path}: made for exits after layers {about['layers']}, config.json has {layers}"
    precision = "int8" if path.name == GRAPHS["onnx-int8"] else "float32"
    if path.suffix != ".xml" and about["precision"] != precision:
        return f"{path}: made in {about['precision']}, and its name is that of {precision}"
    if about["precision"] == "int8" and "activations" not in about:
        return f"{path}: made by an earlier version, its answers depend on the batch"
    if source is None:  # a file of an earlier version names the digest of the files alone
        if about["model"] in (None, content.file_digest) or not content.weight_files:
            return None
        return f"{path}: made of other weights than those beside it"
    if difference := source.difference(content, about["layers"], whole):
        return f"{path}: made {difference}"
    data = weights_beside(path)
    if data.exists() and (difference := source.data_difference(data, whole)):
        return f"{data}: {difference}"
    return None


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a graph that `offramp export` wrote.

    Raises:
        InvalidInput: it did not write the file, or the file cannot be read.
    """
    if path.suffix == ".xml":
        from offramp.types.openvino_file import read_xml_metadata  # a start on another graph needs no parser of XML

        metadata = read_xml_metadata(path)
        if ABOUT not in metadata:
            raise InvalidInput(f"{path}: not a graph that `offramp export` wrote")
        return metadata
    try:
        entries = [content for number, content in _fields(path.read_bytes()) if number == _METADATA]
        pairs = [dict(_fields(entry)) for entry in entries if entry is not None]
        metadata = {(pair[1] or b"").decode(): (pair[2] or b"").decode() for pair in pairs}
    except OSError as error:
        raise InvalidInput(f"{path}: {error.strerror}") from None
    except (ValueError, KeyError, IndexError):
        raise InvalidInput(f"{path}: not an ONNX file, or cut") from None
    if ABOUT not in metadata:
        raise InvalidInput(f"{path}: not a graph that `offramp export` wrote")
    return metadata


def with_data_at(graph: bytes, name: str, other: str) -> bytes:
    """Return a graph whose weights are in a file of another name.

    Args:
        graph: the content of the ONNX file.
        name: of the file with the weights, as the graph has it.
        other: the new one.
    """
    return _renamed(graph, "model", name.encode(), other.encode())


def _renamed(message: bytes, kind: str, name: bytes, other: bytes) -> bytes:
    parts = []
    for start, end, number, content in _raw_fields(message):
        if content is None or name not in content:
            parts.append(message[start:end])
            continue
        if kind == "external data" and content == name:
            content = other
        elif number in _INSIDE[kind]:
            content = _renamed(content, _INSIDE[kind][number], name, other)
        parts.append(_varint(number << 3 | 2) + _varint(len(content)) + content)
    return b"".join(parts)


def _fields(message: bytes) -> Iterator[tuple[int, bytes | None]]:
    """Yield number and content of each field of a message; None for numbers."""
    return ((number, content) for _, _, number, content in _raw_fields(message))


def _raw_fields(message: bytes) -> Iterator[tuple[int, int, int, bytes | None]]:
    """Yield first byte, end, number and content of each field of a protobuf message.

    Raises:
        ValueError: it is not one, or it is cut.
    """
    position = 0
    while position < len(message):
        start = position
        tag, position = _read_varint(message, position)
        content = None
        if tag & 7 == 0:
            _, position = _read_varint(message, position)
        elif tag & 7 == 2:
            length, position = _read_varint(message, position)
            content = message[position : position + length]
            position += length
        elif tag & 7 in (1, 5):
            position += 8 if tag & 7 == 1 else 4
        else:
            raise ValueError("not a protobuf message")
        if position > len(message):
            raise ValueError("a protobuf message is cut")
        yield start, position, tag >> 3, content


def _read_varint(message: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[position]
        position += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, position


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    return bytes([*encoded, value])


def _data_digest(data: Path, spans: Sequence[Sequence[int]], whole: bool) -> str:
    with data.open("rb", buffering=0) as file:
        return tensor_digest(
            "", (part for start, length in spans for part in pieces(file, start, start + length, whole))
        )
