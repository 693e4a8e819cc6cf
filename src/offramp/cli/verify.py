"""`offramp info --verify`: every file of a model's folder against the others, byte by byte."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from offramp.calibration.saved_lines import LINES_FILE, read_saved_lines
from offramp.errors import InvalidInput
from offramp.model.activation_ranges import ActivationRanges, read_ranges
from offramp.model.card import HEADING, read_card, true_card
from offramp.model.config import MultiExitConfig
from offramp.model.hub import TOKENIZER_FILES, load_tokenizer
from offramp.types.costs_file import COSTS_FILE, read_costs
from offramp.types.export_command import export_command
from offramp.types.graph_file import GRAPHS, RANGES_FILE, stale, weights_beside
from offramp.types.model_content import ModelContent, spans
from offramp.types.operating_point import POINTS_FILE, OperatingPoint, read_points

OK, STALE, UNKNOWN = "ok", "stale", "unknown"


@dataclass(frozen=True)
class Finding:
    """The state of one file, or of one point of a file.

    Attributes:
        file: its name.
        state: OK, STALE or UNKNOWN, where nothing says what it is of.
        note: in words.
    """

    file: str
    state: str
    note: str


def verify(folder: Path, config: MultiExitConfig) -> list[Finding]:
    """Compare weights, points, graphs and card of a local folder, reading every byte."""
    content = ModelContent(folder)
    findings = list(_weights(content))
    if any(finding.state == STALE for finding in findings):
        return findings  # nothing can be compared with broken weights
    findings += [*_unreadable_tokenizer(folder, config), *_unreadable_lines(folder), *_costs(folder), *_ranges(folder)]
    try:
        points = read_points(folder / POINTS_FILE) if (folder / POINTS_FILE).exists() else {}
    except InvalidInput as error:
        points = {}
        findings.append(Finding(POINTS_FILE, STALE, str(error)))
    findings += [_point(name, point, content) for name, point in points.items()]
    for engine in GRAPHS:
        findings += _graph(engine, content)
    return [*findings, *_card(folder / "README.md", points, config)]


def _weights(content: ModelContent) -> Iterator[Finding]:
    try:
        files = content.weight_files
    except InvalidInput as error:
        yield Finding("model.safetensors.index.json", STALE, str(error))
        return
    if not files:
        yield Finding("model.safetensors", UNKNOWN, "there are no weights to compare with")
    for path in files:
        try:
            tensors = spans(path)
            yield Finding(path.name, OK, f"whole, {len(tensors)} tensors, {path.stat().st_size:,} bytes")
        except InvalidInput as error:
            yield Finding(path.name, STALE, str(error))


def _unreadable_tokenizer(folder: Path, config: MultiExitConfig) -> Iterator[Finding]:
    if not any((folder / name).exists() for name in TOKENIZER_FILES):
        return
    try:
        load_tokenizer(folder, config.backbone)
    except InvalidInput as error:
        yield Finding("tokenizer", STALE, str(error))


def _unreadable_lines(folder: Path) -> Iterator[Finding]:
    try:
        read_saved_lines(folder)
    except InvalidInput as error:
        yield Finding(LINES_FILE, STALE, str(error))


def _costs(folder: Path) -> Iterator[Finding]:
    try:
        tables = read_costs(folder)
    except InvalidInput as error:
        yield Finding(COSTS_FILE, STALE, str(error))
        return
    if tables is None:
        yield Finding(COSTS_FILE, STALE, "measured with other weights; `offramp bench` measures anew")
    elif tables:
        yield Finding(COSTS_FILE, OK, f"{len(tables)} cost tables of these weights")


def _ranges(folder: Path) -> Iterator[Finding]:
    """Compare the ranges of activations with the weights."""
    try:
        ranges = read_ranges(folder)
        if ranges is None:
            return
        own = ActivationRanges.load(folder) is not None
    except InvalidInput as error:
        yield Finding(RANGES_FILE, STALE, str(error))
        return
    remedy = f"`offramp export {folder} --int8 --data FILE` measures them anew"
    yield (
        Finding(RANGES_FILE, OK, "of these weights")
        if own
        else Finding(RANGES_FILE, STALE, f"measured with other weights; {remedy}")
    )


def _point(name: str, point: OperatingPoint, content: ModelContent) -> Finding:
    file = f"{POINTS_FILE}: {name}"
    remedy = "`offramp calibrate` chooses it anew"
    if point.fingerprint is not None:
        difference = content.difference(point.fingerprint, whole=True)
        if difference is None:
            return Finding(file, OK if content.weight_files else UNKNOWN, "chosen for this model")
        return Finding(file, STALE, f"chosen for {difference}; {remedy}")
    named = point.measured.provenance.get("weights") if point.measured is not None else None
    if point.certificate is not None and point.certificate.weights is not None:
        named = point.certificate.weights
    if named is None or not content.weight_files:
        return Finding(file, UNKNOWN, "does not say for which weights it was chosen")
    if named == content.file_digest:
        return Finding(file, OK, "chosen for these weights")
    return Finding(file, STALE, f"chosen for other weights; {remedy}")


def _graph(engine: str, content: ModelContent) -> Iterator[Finding]:
    name = GRAPHS[engine]
    path = content.folder / name
    data = weights_beside(path)
    if not path.exists():
        if data.exists():
            yield Finding(data.relative_to(content.folder).as_posix(), STALE, f"there is no {path.name}; delete it")
        return
    try:
        reason = stale(path, content, whole=True)
    except InvalidInput as error:
        reason = str(error)
    if reason is None and not data.exists():
        reason = f"there is no {data.name}"
    if reason is not None:
        yield Finding(name, STALE, f"{reason}; {export_command(content.folder, engine)} makes it anew")
    elif content.weight_files:
        yield Finding(name, OK, f"of this model, with {data.name}")
    else:
        yield Finding(name, UNKNOWN, "of this configuration and tokenizer; there are no weights to compare with")


def _card(path: Path, points: dict[str, OperatingPoint], config: MultiExitConfig) -> Iterator[Finding]:
    if not path.exists():
        return
    text = read_card(path)
    if text is None or HEADING not in text:
        yield Finding(path.name, UNKNOWN, "somebody's own card")
    elif true_card(text, points, config.layers, config) == text:
        yield Finding(path.name, OK, "lists these exits, outputs and points")
    else:
        yield Finding(
            path.name, STALE, "lists other exits, outputs or points; the next save_pretrained or calibrate corrects it"
        )
