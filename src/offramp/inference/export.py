"""A model's folder -> one ONNX graph that leaves early, checked against torch before it bears its name.

In int8 the file is held to its own trace (`check_graph.py`), and on rows of the model's own data its answers and its
score are compared with those of torch.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx
import torch
from tqdm import tqdm

from offramp.data.columns import GUESSED, Columns
from offramp.data.records import AS_NAMED, Reading
from offramp.errors import InvalidInput
from offramp.inference.check_graph import Rows, check
from offramp.inference.export_plan import ExportPlan, PolicyLike, agreement, rows_to_compare, scores_beside
from offramp.inference.onnx.assemble import assemble
from offramp.inference.onnx.export_blocks import export_parts
from offramp.inference.onnx.export_policy import at_all_exits, export_steps
from offramp.inference.onnx.metadata import policy_key, weights_digest
from offramp.inference.onnx.pieces import ModelParts, data_spans, with_weights_beside
from offramp.inference.onnx.quantize import exact_int8
from offramp.inference.onnx.session import OnnxSession
from offramp.inference.onnx_engine import OnnxEngine
from offramp.inference.record import data_name, record
from offramp.model.activation_ranges import ActivationRanges, measure_ranges
from offramp.model.modeling import MultiExitModel
from offramp.policies.base import Policy
from offramp.policies.registry import policy_to_dict
from offramp.types.graph_file import GRAPHS, RANGES_FILE, WEIGHTS, GraphSource
from offramp.types.model_content import ModelContent
from offramp.types.whole_file import give_name, unfinished_folder

CHECKED = 64  # rows that are checked in batches


@dataclass(frozen=True)
class ExportReport:
    """An exported file and the results of its check.

    Attributes:
        path: of the file.
        engine: which runs it.
        policy: the one it runs.
        policies: those whose steps it holds; one that does not read all exits of the file names those that it reads,
            in `exit_layers`.
        layers: the layer number of each exit that it holds, 0 = before the first layer.
        left_out: the layer numbers of the model's other exits, which no operating point reads.
        bytes: its size, with the weights beside it.
        seconds: that exporting and checking took.
        rows: that it was compared on.
        difference: largest one between its logits and torch's, at any exit; None in int8 without data.
        agreement: share of rows whose answer at full depth is torch's; None for a regression, and in int8 without data.
        activations: of int8, the data and the rows that the scales of activations come from; None in float32.
        metric: the name of what the scores below are; None where there were no labels.
        score: of the file at full depth.
        torch_score: of the model in torch at full depth.
    """

    path: Path
    engine: str
    policy: Mapping[str, Any]
    policies: Sequence[Mapping[str, Any]]
    layers: Sequence[int]
    left_out: Sequence[int]
    bytes: int
    seconds: float
    rows: int
    difference: float | None
    agreement: float | None
    activations: Mapping[str, Any] | None = None
    metric: str | None = None
    score: float | None = None
    torch_score: float | None = None


def export(
    folder: str | os.PathLike[str],
    policy: PolicyLike | None = None,
    *,
    policies: Sequence[PolicyLike] = (),
    int8: bool = False,
    dataset: str | os.PathLike[str] | Sequence[Mapping[str, Any]] | None = None,
    columns: Columns = GUESSED,
    reading: Reading = AS_NAMED,
    split: str = "validation",
) -> ExportReport:
    """Write `model.onnx` or `model.int8.onnx` into a model's folder, with the weights in a file beside it (`.data`).

    The file holds the exits that the folder's operating points read and always the last one; without points, and where
    tokens exit, all of the model's. It holds the steps of `policy`, of the operating points' policies, of the default
    policy and of `policies`, each once: those of a point at the exits that it reads, the others at all of the file's.
    It takes another policy that it holds in seconds
    (`offramp.inference.onnx.assemble.switch_policy`).

    Args:
        folder: what `save_pretrained` wrote.
        policy: the one that the graph runs; None = that of the operating point "default", else the default policy.
        policies: others whose steps the file is to hold.
        int8: the encoder's linear layers and its table of words in 8 bits, with constant scales of activations, which
            come from the ranges that `offramp train` leaves beside the weights, else from `dataset`, which then leaves
            them there.
        dataset: what to compare it on: labelled data for the model (see `offramp.record`), or rows that are
            tokenized already; None = texts of the built-in sample, where an int8 file is checked against its own trace.
        columns: which columns of a file to read.
        reading: how to read a file, where its name does not say it.
        split: which part of a named data set to read.

    Raises:
        InvalidInput: a model that cannot be exported, or whose exit before the first layer is not fitted; an
            operating point for other exits than it has; int8 without ranges and without data.
        NotApplicable: a policy has no meaning for the model; nothing has been exported.
        ExportMismatch: the file does not do what torch does; it is not left there.
    """
    started = time.perf_counter()
    folder = Path(folder)
    plan = ExportPlan.of(folder, policy, policies)
    model, layers = plan.model, plan.layers
    saved = ActivationRanges.load(folder) if int8 else None
    if int8 and saved is None and dataset is None:
        raise InvalidInput(
            f"{folder}: no {RANGES_FILE} of these weights, from which int8 takes its scales; give texts of the "
            f"model's own kind: `offramp export {folder} --int8 --data FILE`"
        )
    rows = rows_to_compare(folder, model, dataset, columns, split, reading)
    path = folder / GRAPHS["onnx-int8" if int8 else "onnx"]
    ranges = (saved or _measured(folder, model, rows, dataset, split)) if int8 else None
    precision, prepare = ("float32", None) if ranges is None else ("int8", exact_int8(ranges))
    parts = export_parts(model, weights_digest(folder), precision, prepare, layers)
    activations = None if ranges is None else {"rows": ranges.rows, "data": ranges.data}
    parts = replace(parts, metadata=replace(parts.metadata, activations=activations))
    for rule, read in (plan.default, *plan.others):
        parts = with_steps(parts, [rule], read)
    reference = record(model, rows).select(layers)
    with unfinished_folder(path) as unfinished:
        graph, weights = (unfinished / f"{path.name}{ending}" for ending in ("", WEIGHTS))
        parts = with_weights_beside(parts, weights)
        source = GraphSource.of(ModelContent(folder), weights, data_spans(parts), parts.metadata.layers)
        parts = replace(parts, metadata=replace(parts.metadata, source=source))

        def assembled(rule: Policy, read: tuple[int, ...]) -> OnnxEngine:
            onnx.save(assemble(parts, policy_to_dict(rule), parts.metadata.subset(read)), graph)
            return OnnxEngine(OnnxSession.load(graph), model.config)

        few = reference.take(torch.arange(min(CHECKED, len(rows))))
        for other in tqdm(plan.others, desc="check", unit="policy", disable=None, leave=False):
            check(assembled(*other), rows[:CHECKED], few)
        exported = assembled(*plan.default)  # last, because its file stays
        check(exported, rows[:CHECKED], few)
        trace = record(exported, rows)
        compared = not int8 or dataset is not None
        size = graph.stat().st_size + weights.stat().st_size
        give_name(weights, folder / weights.name)
        give_name(graph, path)
    return ExportReport(
        path=path,
        engine=exported.name,
        policy=policy_to_dict(plan.default[0]),
        policies=[json.loads(key) for key in parts.metadata.policies],
        layers=layers,
        left_out=plan.left_out,
        bytes=size,
        seconds=time.perf_counter() - started,
        rows=len(rows),
        difference=(trace.logits - reference.logits).abs().max().item() if compared else None,
        agreement=agreement(trace, reference) if compared else None,
        activations=activations,
        **scores_beside(trace, reference),
    )


def with_steps(parts: ModelParts, policies: Sequence[Policy], read: Sequence[int] | None = None) -> ModelParts:
    """Return the pieces with the steps of these policies.

    Args:
        parts: the pieces.
        policies: those whose steps are added.
        read: the layers whose exits they read; None = all of the graph's.

    Raises:
        NotApplicable: a policy has no meaning for the model.
    """
    metadata = parts.metadata
    calls, functions = dict(metadata.policies), dict(parts.functions)
    layers = metadata.layers if read is None else tuple(read)
    for rule in policies:
        policy = policy_to_dict(rule)
        steps, more = export_steps(
            policy_key(policy), layers, metadata.outputs, metadata.problem_type, metadata.certainty
        )
        calls[policy_key(policy, metadata.subset(layers))] = at_all_exits(steps, layers, metadata.layers)
        functions |= more
    return replace(parts, functions=functions, metadata=replace(metadata, policies=calls))


def _measured(folder: Path, model: MultiExitModel, rows: Rows, dataset: object, split: str) -> ActivationRanges:
    """Return the ranges of activations on these rows, and keep them beside the weights."""
    name = data_name(dataset, split) if isinstance(dataset, (str, os.PathLike)) else "rows in memory"
    ranges = measure_ranges(model, rows, name)
    ranges.save(folder)
    return ranges
