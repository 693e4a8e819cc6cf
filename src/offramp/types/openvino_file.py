"""The XML of a model in OpenVINO's format: its metadata, and where its weights are. Needs no openvino.

The weights lie in a file of their own beside it, as bytes.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Mapping
from pathlib import Path

from offramp.errors import InvalidInput

ELEMENT = "offramp"
"""The element of the file's own notes (rt_info) that holds the metadata."""


def read_xml_metadata(path: Path) -> dict[str, str]:
    """Return the metadata that `finish_xml` wrote; {} where there is none.

    It stands at the end of the file, which is not parsed for it.

    Raises:
        InvalidInput: the file cannot be read, or is cut.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InvalidInput(f"{path}: {error.strerror}") from None
    if not content.rstrip().endswith(b"</net>"):
        raise InvalidInput(f"{path}: not a model of OpenVINO, or cut")
    start = content.rfind(f"<{ELEMENT}>".encode())
    try:
        element = ElementTree.fromstring(
            content[start : content.rfind(f"</{ELEMENT}>".encode())] + f"</{ELEMENT}>".encode()
        )
    except ElementTree.ParseError:
        return {}
    return {entry.attrib["key"]: entry.attrib["value"] for entry in element if {"key", "value"} <= entry.attrib.keys()}


def weight_spans(path: Path) -> list[list[int]]:
    """Return first byte and length of each tensor in the file of a model's weights, each once."""
    constants = (layer for layer in ElementTree.parse(path).iter("layer") if layer.get("type") == "Const")
    data = (layer.find("data") for layer in constants)
    spans = {(int(entry.attrib["offset"]), int(entry.attrib["size"])) for entry in data if entry is not None}
    return [list(span) for span in sorted(spans)]


def finish_xml(path: Path, metadata: Mapping[str, str], in_float32: Callable[[str], bool]) -> None:
    """Write metadata into a model that OpenVINO has saved, and mark the operations that are to stay in float32.

    Args:
        path: of the XML.
        metadata: its entries.
        in_float32: name of an operation -> whether it is computed in float32 where the others run in bf16.
    """
    tree = ElementTree.parse(path)
    for layer in tree.iter("layer"):
        if in_float32(layer.get("name", "")):
            notes = layer.find("rt_info")
            notes = ElementTree.SubElement(layer, "rt_info") if notes is None else notes
            ElementTree.SubElement(notes, "attribute", {"name": "precise", "version": "0"})
    root = tree.getroot()
    if (notes := root.find("rt_info")) is not None:  # how it was made, by which versions: not the same in every run
        root.remove(notes)
    notes = ElementTree.SubElement(ElementTree.SubElement(root, "rt_info"), ELEMENT)
    for key, value in metadata.items():
        ElementTree.SubElement(notes, "entry", {"key": key, "value": value})
    tree.write(path, encoding="utf-8", xml_declaration=True)
