"""What an export writes, for every runtime: the exits and policies that a file holds, and the rows to compare it on."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offramp.data.batching import encode, token_limit
from offramp.data.columns import Columns
from offramp.data.examples import read_rows
from offramp.data.readers import SAMPLE
from offramp.data.records import Reading
from offramp.evaluation.metrics import layerwise, metric_for
from offramp.inference.check_graph import Rows
from offramp.inference.onnx.assemble import refuse_depth
from offramp.inference.onnx.export_policy import export_steps
from offramp.inference.onnx.metadata import policy_key
from offramp.inference.record import read_for
from offramp.model.exits import refuse_unfitted
from offramp.model.hub import load_tokenizer, refuse_images
from offramp.model.loading import load_model
from offramp.model.modeling import MultiExitModel
from offramp.model.points import load_points
from offramp.policies.base import Policy
from offramp.policies.registry import as_policy, default_unfitted_policy, policy_to_dict
from offramp.types.ladder_names import LADDER_NAMES
from offramp.types.operating_point import DEFAULT, OperatingPoint
from offramp.types.outputs import predictions
from offramp.types.problem_types import REGRESSION
from offramp.types.trace import Trace

SAMPLE_TEXTS = Columns(text="text", label="intent")
PolicyLike = Policy | Mapping[str, Any] | str
"""A policy, its name, or its data; see `load_policy`."""
PolicyAtExits = tuple[Policy, tuple[int, ...]]
"""A policy, and the layer numbers of the exits that it reads."""


@dataclass(frozen=True)
class ExportPlan:
    """What a file of a folder's model holds.

    Attributes:
        model: in float32, on the CPU.
        points: the folder's operating points, by name.
        layers: the layer number of each exit that the file holds.
        default: the policy that it runs.
        others: the other policies of points, and those asked for.
    """

    model: MultiExitModel
    points: Mapping[str, OperatingPoint]
    layers: tuple[int, ...]
    default: PolicyAtExits
    others: Sequence[PolicyAtExits]

    @property
    def left_out(self) -> list[int]:
        """Return the layer numbers of the model's exits that the file does not hold."""
        return [layer for layer in self.model.layers if layer not in self.layers]

    @classmethod
    def of(cls, folder: Path, policy: PolicyLike | None, policies: Sequence[PolicyLike] = ()) -> ExportPlan:
        """Read a folder's model and points.

        Args:
            folder: what `save_pretrained` wrote.
            policy: the one to run; None = that of the operating point "default", else of a ladder, else the default
                policy.
            policies: others.

        Raises:
            InvalidInput: too many exits, or the exit before the first layer is not fitted; an operating point for other
                exits than the model has.
            NotApplicable: a policy has no meaning for the model.
        """
        model = load_model(folder).float().cpu()
        refuse_unfitted(model.lexical_exit)
        points = load_points(folder)
        layers = _layers_held(model, points)
        refuse_depth(len(layers))
        default, *others = _distinct_policies(model, points, layers, policy, policies)
        for rule, read in (default, *others):
            _refuse_policy(model, rule, read)
        return cls(model, points, layers, default, others)


def rows_to_compare(
    folder: Path,
    model: MultiExitModel,
    dataset: str | os.PathLike[str] | Sequence[Mapping[str, Any]] | None,
    columns: Columns,
    split: str,
    reading: Reading,
) -> Rows:
    """Return the rows that the file is checked on, tokenized, with labels where there are some."""
    if dataset is not None and not isinstance(dataset, (str, os.PathLike)):
        return [dict(row) for row in dataset]
    refuse_images(folder, model.config)
    tokenizer = load_tokenizer(folder, model.config.backbone)
    limit = token_limit(tokenizer, model.config.backbone)
    if dataset is None:
        return list(encode(tokenizer, [row.text for row in read_rows(SAMPLE, SAMPLE_TEXTS, split="test")], limit))
    examples = read_for(model.config, os.fspath(dataset), columns, split, reading)
    rows = encode(tokenizer, examples.texts, limit)
    return [{**row, "labels": label} for row, label in zip(rows, examples.labels, strict=True)]


def agreement(trace: Trace, reference: Trace) -> float | None:
    """Return the share of rows whose answer at full depth is the reference's; None for a regression."""
    if trace.problem_type == REGRESSION:
        return None
    exported, full = (predictions(one.exit(one.depth - 1)) for one in (trace, reference))
    return (exported == full).all(dim=-1).float().mean().item()


def scores_beside(trace: Trace, reference: Trace) -> dict[str, Any]:
    """Return the fields of a report with the scores at full depth of a file and of torch; {} without labels."""
    if trace.labels is None:
        return {}
    return {
        "metric": metric_for(trace, None)[0],
        "score": float(layerwise(trace)[-1]),
        "torch_score": float(layerwise(reference)[-1]),
    }


def _layers_held(model: MultiExitModel, points: Mapping[str, OperatingPoint]) -> tuple[int, ...]:
    """Return the layers whose exits a graph holds: those that some point reads; without points all of the model's."""
    held: set[int] = set() if points else set(model.layers)
    if model.config.token_exit is not None:  # the exporter cannot run a layer after one that removes tokens
        held.update(model.config.exit_layers)
    for point in points.values():
        held.update(point.layers_read(model.layers))
    return tuple(sorted(held))


def _distinct_policies(
    model: MultiExitModel,
    points: Mapping[str, OperatingPoint],
    layers: tuple[int, ...],
    policy: PolicyLike | None,
    policies: Sequence[PolicyLike],
) -> list[PolicyAtExits]:
    """Return the policies that a file holds with the layers whose exits they read, each once; it runs the first one."""
    default = default_unfitted_policy(model.config.problem_type)
    of_points = {name: (point.policy, point.layers_read(model.layers)) for name, point in points.items()}
    runs = next((of_points[name] for name in (DEFAULT, *LADDER_NAMES) if name in of_points), (default, layers))
    first = runs if policy is None else (policy, layers)
    others = [(like, layers) for like in (default, *policies)]
    by_key: dict[str, PolicyAtExits] = {}
    for like, read in (first, *of_points.values(), *others):
        rule = as_policy(like)
        by_key.setdefault(policy_key(policy_to_dict(rule), read), (rule, read))
    return list(by_key.values())


def _refuse_policy(model: MultiExitModel, rule: Policy, read: tuple[int, ...]) -> None:
    """Raise NotApplicable where a policy does not fit, before the blocks are exported; its steps are kept."""
    key, config = policy_key(policy_to_dict(rule)), model.config
    export_steps(key, read, config.num_labels, config.problem_type, model.gate is not None)
