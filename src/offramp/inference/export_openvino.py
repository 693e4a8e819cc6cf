"""A model's folder -> one graph in OpenVINO's format that leaves early, checked against torch before it bears its name.

The graph is the ONNX graph of `export.py`, converted. In float32 it is held to torch; in the precision in which it will
run, its answers are compared with torch's, and those of batches with those of single rows.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import openvino
import torch
from torch import Tensor

from offramp.data.batching import collate
from offramp.data.columns import GUESSED, Columns
from offramp.data.padding import Array
from offramp.data.records import AS_NAMED, Reading
from offramp.errors import InvalidInput
from offramp.inference.check_graph import Rows, check
from offramp.inference.engine import Engine
from offramp.inference.export import CHECKED, ExportReport, with_steps
from offramp.inference.export_plan import ExportPlan, PolicyLike, agreement, rows_to_compare, scores_beside
from offramp.inference.onnx.assemble import assemble
from offramp.inference.onnx.export_blocks import export_parts
from offramp.inference.onnx.metadata import GraphMetadata, weights_digest
from offramp.inference.onnx.pieces import ModelParts, with_weights_beside
from offramp.inference.openvino.convert import of_the_encoder, to_openvino
from offramp.inference.openvino.session import FLOAT32
from offramp.inference.openvino_engine import OpenVinoEngine, load_openvino
from offramp.inference.record import data_name, record
from offramp.policies.fixed import Fixed
from offramp.policies.registry import policy_to_dict
from offramp.types.graph_file import GRAPHS, GraphSource, weights_beside
from offramp.types.model_content import ModelContent
from offramp.types.openvino_file import finish_xml, weight_spans
from offramp.types.operating_point import DEFAULT, OperatingPoint
from offramp.types.outputs import ExitOutput, predictions
from offramp.types.problem_types import REGRESSION
from offramp.types.whole_file import give_name, unfinished_folder

MEASURED_ROWS = 300  # from which the ranges of activations are measured
COMPARED_ROWS, BATCH = 512, 32  # rows that are answered alone and in batches


@dataclass(frozen=True)
class BatchComparison:
    """Answers to single rows and to the same rows in batches of BATCH.

    Attributes:
        rows: that were compared.
        labels: share of rows with the same answer at the operating point "default", or at full depth without one; None
            for a regression.
        exit_layers: share of rows that leave at the same layer there.
        difference: the largest one between the logits of any exit, at full depth.
    """

    rows: int
    labels: float | None
    exit_layers: float
    difference: float


@dataclass(frozen=True, kw_only=True)
class OpenVinoReport(ExportReport):
    """A converted file and the results of its check.

    Attributes:
        between_batches: what the batch changes, in the precision in which the file runs on this machine.
    """

    between_batches: BatchComparison


def export_openvino(
    folder: str | os.PathLike[str],
    policy: PolicyLike | None = None,
    *,
    int8: bool = False,
    dataset: str | os.PathLike[str] | Sequence[Mapping[str, Any]] | None = None,
    columns: Columns = GUESSED,
    reading: Reading = AS_NAMED,
    split: str = "validation",
) -> OpenVinoReport:
    """Write `openvino/model.xml` into a model's folder, with the weights beside it (`model.bin`).

    The file holds the exits that `export` would hold, and runs one policy.

    Args:
        folder: what `save_pretrained` wrote.
        policy: as in `export`.
        int8: the encoder's linear layers in int8, with NNCF.
        dataset: what to compare it on, as in `export`; int8 measures the ranges of activations on some of its rows.
        columns: which columns of a file to read.
        reading: how to read a file, where its name does not say it.
        split: which part of a named data set to read.

    Raises:
        InvalidInput: as in `export`; int8 without a data set.
        NotApplicable: a policy has no meaning for the model; nothing has been exported.
        UnsupportedBackbone: OpenVINO cannot read the graph of this encoder.
        ExportMismatch: in float32 the file does not do what torch does; it is not left there.
    """
    started = time.perf_counter()
    folder = Path(folder)
    if int8 and dataset is None:
        raise InvalidInput(
            f"{folder}: int8 in OpenVINO measures the ranges of activations on texts of the model's own kind: "
            f"`offramp export {folder} --openvino --int8 --data FILE`"
        )
    plan = ExportPlan.of(folder, policy)
    model, default = plan.model, plan.default
    rows = rows_to_compare(folder, model, dataset, columns, split, reading)
    parts = export_parts(model, weights_digest(folder), layers=plan.layers)
    for rule, read in (default, *plan.others):  # the others are only named in the file, for the command that switches
        parts = with_steps(parts, [rule], read)
    reference = record(model, rows).select(plan.layers)
    path = folder / GRAPHS["openvino"]
    with unfinished_folder(path) as unfinished:
        parts = with_weights_beside(parts, unfinished / "model.onnx.data")
        graph = assemble(parts, policy_to_dict(default[0]), parts.metadata.subset(default[1]))
        metadata = GraphMetadata.of({entry.key: entry.value for entry in graph.metadata_props})
        converted = to_openvino(graph, unfinished / "model.onnx")
        in_float32 = unfinished / "float32.xml"
        _save(converted, in_float32, folder, metadata)
        exported = load_openvino(in_float32, model.config, precision=FLOAT32)
        check(exported, rows[:CHECKED], reference.take(torch.arange(min(CHECKED, len(rows)))))
        written = in_float32
        if int8:
            written = unfinished / "int8.xml"
            _quantize(converted, parts, unfinished / "flat.onnx", exported, rows)
            name = data_name(dataset, split) if isinstance(dataset, (str, os.PathLike)) else "rows in memory"
            activations = {"rows": min(MEASURED_ROWS, len(rows)), "data": name}
            metadata = replace(metadata, precision="int8", activations=activations)
            _save(converted, written, folder, metadata)
        engine = load_openvino(written, model.config)
        trace = record(engine, rows)
        point = plan.points.get(DEFAULT) if policy is None else None
        between_batches = _between_batches(engine, rows, point)
        size = sum(file.stat().st_size for file in (written, weights_beside(written)))
        give_name(weights_beside(written), weights_beside(path))
        give_name(written, path)
    return OpenVinoReport(
        path=path,
        engine=engine.name,
        policy=policy_to_dict(default[0]),
        policies=[policy_to_dict(default[0])],
        layers=plan.layers,
        left_out=plan.left_out,
        bytes=size,
        seconds=time.perf_counter() - started,
        rows=len(rows),
        difference=(trace.logits - reference.logits).abs().max().item(),
        agreement=agreement(trace, reference),
        activations=metadata.activations,
        between_batches=between_batches,
        **scores_beside(trace, reference),
    )


def _save(graph: openvino.Model, path: Path, folder: Path, metadata: GraphMetadata) -> None:
    """Write a converted graph with its metadata, and with marks on what stays in float32."""
    openvino.save_model(graph, path, compress_to_fp16=False)
    source = GraphSource.of(ModelContent(folder), weights_beside(path), weight_spans(path), metadata.layers)
    finish_xml(path, replace(metadata, source=source).to_metadata(), lambda name: not of_the_encoder(name))


def _quantize(graph: openvino.Model, parts: ModelParts, path: Path, engine: OpenVinoEngine, rows: Rows) -> None:
    """Quantize a converted graph, in place.

    Args:
        graph: with branches.
        parts: its pieces.
        path: for the same graph without branches, as ONNX.
        engine: whose inputs the graph takes.
        rows: of which MEASURED_ROWS, taken evenly, measure the ranges of activations.
    """
    from offramp.inference.openvino.quantize import quantize

    last = parts.metadata.layers[-1:]
    without_exits = with_steps(parts, [Fixed()], last)
    flat = to_openvino(assemble(without_exits, policy_to_dict(Fixed()), parts.metadata.subset(last)), path)
    chosen = _evenly(rows, MEASURED_ROWS)
    quantize(graph, flat, [_inputs(engine, row) for row in chosen])


def _inputs(engine: OpenVinoEngine, row: Mapping[str, Any]) -> dict[str, Array]:
    """Return the graph's inputs for one row."""
    batch = collate([{name: value for name, value in row.items() if name != "labels"}], engine.config.pad_token_id)
    inputs = engine.graph.inputs
    return {
        **inputs.arrays({name: value.numpy() for name, value in batch.items()}),
        "thresholds": inputs.limits(torch.inf, 1),
    }


def _between_batches(engine: Engine, rows: Rows, point: OperatingPoint | None) -> BatchComparison:
    """Compare answers to single rows with answers in batches."""
    rows = _evenly(rows, COMPARED_ROWS)
    alone, together = (record(engine, rows, batch_size=size).logits for size in (1, BATCH))
    one, many = (_answers(engine, rows, point, size) for size in (1, BATCH))
    same = None
    if engine.config.problem_type != REGRESSION:
        labels = [predictions(ExitOutput(logits, problem_type=engine.config.problem_type)) for logits, _ in (one, many)]
        same = (labels[0] == labels[1]).all(dim=-1).float().mean().item()
    same_layers = (one[1] == many[1]).float().mean().item()
    return BatchComparison(len(rows), same, same_layers, (alone - together).abs().max().item())


def _answers(engine: Engine, rows: Rows, point: OperatingPoint | None, size: int) -> tuple[Tensor, Tensor]:
    """Return logits (N, C) and exit layers (N,) of rows in batches of `size`, in their order."""
    outputs = []
    for start in range(0, len(rows), size):
        batch = collate(rows[start : start + size], engine.config.pad_token_id)
        outputs.append(engine.answer({name: value for name, value in batch.items() if name != "labels"}, point))
    return torch.cat([out.logits for out in outputs]), torch.cat([out.exit_layers for out in outputs])


def _evenly(rows: Rows, most: int) -> Rows:
    count = min(most, len(rows))
    return [rows[number * len(rows) // count] for number in range(count)]
