"""What lies beside a model's weights, made true after the weights were written: points, card, exported graphs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from huggingface_hub import ModelCard
from transformers import PreTrainedConfig
from transformers.utils import CONFIG_NAME, logging

from offramp.errors import InvalidInput
from offramp.model.card import read_card, save_points, write_card
from offramp.model.points import load_points
from offramp.types.costs_file import COSTS_FILE, read_costs
from offramp.types.export_command import export_command
from offramp.types.graph_file import GRAPHS, RANGES_FILE, stale, weights_beside
from offramp.types.model_content import WEIGHTS_FILE, WEIGHTS_INDEX, ModelContent
from offramp.types.operating_point import POINTS_FILE, OperatingPoint, read_points, write_points
from offramp.types.whole_file import new_file_mode, whole_file

logger = logging.get_logger(__name__)

EMPTY_CARD = "This model card has been automatically generated"
"""Words of the card that transformers writes when it uploads a model."""


def finish_folder(
    folder: Path, config: PreTrainedConfig, points: Mapping[str, OperatingPoint]
) -> dict[str, OperatingPoint]:
    """Make the files beside newly written weights true, and say what was removed; others may read the weights.

    Points that were chosen for other weights are not written, graphs, cost tables and ranges of activations of other
    weights are removed, the card is written or lists the points that there are.

    Args:
        folder: with the weights and the configuration.
        config: of the model.
        points: of the model, by name.

    Returns:
        The points that were written.
    """
    for weights in folder.glob("*.safetensors"):
        weights.chmod(new_file_mode())
    content = ModelContent(folder)
    stale_points = [name for name, point in points.items() if _is_stale(point, content)]
    fresh = {name: point for name, point in points.items() if name not in stale_points}
    if stale_points:
        names = ", ".join(map(repr, stale_points))
        logger.warning(
            "%s: operating points %s were chosen for other weights and are left out; `offramp calibrate` chooses "
            "them anew",
            folder,
            names,
        )
    if fresh:
        save_points(fresh, folder)
    elif _readable_points(folder / POINTS_FILE):
        (folder / POINTS_FILE).unlink()
        logger.warning("%s: removed, the model has no operating points", folder / POINTS_FILE)
    _remove_stale_ranges(folder)  # before the graphs: without ranges another command makes an int8 graph anew
    for engine in GRAPHS:
        _remove_stale_graph(engine, content)
    _remove_stale_costs(folder)
    write_card(folder, fresh, config)
    return fresh


def points_beside(folder: Path) -> dict[str, OperatingPoint]:
    """Return the points in a folder to which a model is about to be saved; none where the file cannot be read."""
    try:
        return load_points(folder) if (folder / CONFIG_NAME).exists() else {}
    except InvalidInput as error:
        logger.warning("%s; the file stays as it is", error)
        return {}


def card_text(folder: Path) -> str | None:
    """Return the card of a folder; None if there is none."""
    return read_card(folder / "README.md")


def index_time(folder: Path) -> int | None:
    """Return when the index of a folder's shards was written, in nanoseconds; None if there is none."""
    index = folder / WEIGHTS_INDEX
    return index.stat().st_mtime_ns if index.exists() else None


def remove_replaced_weights(folder: Path, index_before: int | None) -> None:
    """Remove the one file of weights where shards were written now: transformers leaves it, and loads it first.

    Args:
        folder: to which a model was saved.
        index_before: its `index_time` before.
    """
    if index_time(folder) != index_before:
        (folder / WEIGHTS_FILE).unlink(missing_ok=True)


def undo_empty_card(folder: Path, before: str | None) -> list[str]:
    """Put back the card over which transformers wrote its empty one before an upload.

    Args:
        folder: to be uploaded.
        before: its card before; None = there was none, and `finish_folder` writes it.

    Returns:
        The tags of the empty card.
    """
    written = card_text(folder)
    if written is None or EMPTY_CARD not in written:
        return []
    (folder / "README.md").unlink()
    if before is not None:
        with whole_file(folder / "README.md") as file:
            file.write(before)
    return _tags(ModelCard(written))


def ready_for_upload(folder: Path, tags: Sequence[str]) -> None:
    """Let transformers upload the points and the card, also where they did not change; no points are an empty file.

    A file that is not uploaded stays as it is on the hub, and so would the points of the weights before.

    Args:
        folder: to be uploaded, complete.
        tags: that the card is to have.
    """
    card = ModelCard.load(folder / "README.md")
    known = _tags(card)
    if not set(tags) <= set(known):
        card.data["tags"] = [*known, *(tag for tag in tags if tag not in known)]
        card.save(folder / "README.md")
    if not (folder / POINTS_FILE).exists():
        write_points({}, folder / POINTS_FILE)
    for name in (POINTS_FILE, "README.md"):
        os.utime(folder / name)


def _tags(card: ModelCard) -> list[str]:
    return list(getattr(card.data, "tags", None) or [])


def _is_stale(point: OperatingPoint, content: ModelContent) -> bool:
    return point.fingerprint is not None and content.difference(point.fingerprint, whole=True) is not None


def _readable_points(path: Path) -> bool:
    try:
        return bool(path.exists() and read_points(path))
    except InvalidInput:  # somebody's edit, which stays; loading it says what is wrong
        return False


def _remove_stale_graph(engine: str, content: ModelContent) -> None:
    """Remove an exported graph that is not of the model in the folder; somebody else's file stays."""
    path = content.folder / GRAPHS[engine]
    if not path.exists():
        return
    try:
        reason = stale(path, content, whole=True)
    except InvalidInput:
        return
    if reason is not None:
        remedy = export_command(content.folder, engine)
        for file in (path, weights_beside(path)):
            file.unlink(missing_ok=True)
        logger.warning("%s; it is removed, %s makes it anew", reason, remedy)


def _remove_stale_costs(folder: Path) -> None:
    """Remove cost tables that are not of the weights in the folder; a file that cannot be read stays."""
    try:
        stale_costs = read_costs(folder) is None
    except InvalidInput:
        return
    if stale_costs:
        (folder / COSTS_FILE).unlink()
        logger.warning("%s: of other weights; it is removed, `offramp bench` measures anew", folder / COSTS_FILE)


def _remove_stale_ranges(folder: Path) -> None:
    """Remove ranges of activations that are not of the weights in the folder; a file that cannot be read stays."""
    from offramp.model.activation_ranges import ActivationRanges  # which imports the model

    path = folder / RANGES_FILE
    try:
        stale_ranges = path.exists() and ActivationRanges.load(folder) is None
    except InvalidInput:
        return
    if stale_ranges:
        path.unlink()
        remedy = export_command(folder, "onnx-int8")
        logger.warning("%s: of other weights; it is removed, %s measures anew", path, remedy)
