"""Export the steps of a policy as functions of an ONNX file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import torch
from onnx import FunctionProto, ModelProto, helper
from torch import Tensor

from offramp.inference.onnx.assemble import DOMAIN, OPSET
from offramp.inference.onnx.metadata import PolicyCall
from offramp.inference.onnx.pieces import without_origin
from offramp.inference.onnx.torch_export import (
    KINDS,
    SIZES,
    Function,
    Pair,
    export_function,
    output_name,
    silence_exporter,
)
from offramp.policies.base import Memory, Policy, Step
from offramp.policies.decision import continues, nan_where_invalid
from offramp.policies.registry import load_policy
from offramp.types.outputs import ExitOutput


@lru_cache(maxsize=64)
def export_steps(
    policy: str, layers: tuple[int, ...], outputs: int, problem_type: str, certainty: bool
) -> tuple[tuple[PolicyCall, ...], dict[str, FunctionProto]]:
    """Export the steps of a policy as functions of an ONNX file, with their calls at each exit.

    Args:
        policy: its key (see `policy_key`).
        layers: the layer number of each exit that the policy reads.
        outputs: C of the logits.
        problem_type: as in transformers.
        certainty: whether the model has a gate.

    Raises:
        NotApplicable: the policy has no meaning for this kind of problem.
    """
    rule = load_policy(json.loads(policy))
    memory: tuple[Memory, ...] = ((),) * len(SIZES)
    calls: list[PolicyCall] = []
    functions: dict[str, FunctionProto] = {}
    before: _Step | None = None
    for exit, layer in enumerate(layers):
        step = _Step(rule, exit, layer, problem_type, certainty, last=exit == len(layers) - 1)
        inputs = step.example(outputs, memory)
        taken = [step.take([pair[example] for pair in inputs.values()]) for example in range(len(SIZES))]
        answers = taken[0].logits is not inputs["logits"][0]
        remembered = tuple(() if step.last else result.memory for result in taken)
        if before is not None and _alike(before, step, inputs):
            calls.append(calls[-1])
        elif step.last and not answers:
            calls.append(PolicyCall(None))
        else:
            function = _step_function(step, inputs, answers, len(remembered[0]))
            functions[function.name] = function
            calls.append(PolicyCall(function.name, answers, tuple(KINDS[tensor.dtype] for tensor in remembered[0])))
        before = step if _shapes(memory) == _shapes(remembered) else None
        memory = remembered
    return tuple(calls), functions


def at_all_exits(calls: Sequence[PolicyCall], read: Sequence[int], layers: Sequence[int]) -> tuple[PolicyCall, ...]:
    """Return the calls of a policy at every exit of a graph; past an exit that it does not read, its memory goes on.

    Args:
        calls: one for each exit that the policy reads.
        read: the layer numbers of these exits.
        layers: the layer numbers of all exits of the graph.
    """
    by_layer = dict(zip(read, calls, strict=True))
    spread: list[PolicyCall] = []
    for layer in layers:
        memory = spread[-1].memory if spread else ()
        spread.append(by_layer.get(layer, PolicyCall(None, memory=memory)))
    return tuple(spread)


def _shapes(memory: Sequence[Memory]) -> list[list[torch.Size]]:
    return [[tensor.shape for tensor in example] for example in memory]


def _alike(one: _Step, other: _Step, inputs: Mapping[str, Pair]) -> bool:
    """Return True where a policy's steps at two exits give the same for the same inputs."""
    if one.last != other.last:
        return False
    values = [pair[0] for pair in inputs.values()]
    a, b = one.take(values), other.take(values)
    return all(
        torch.equal(x, y) for x, y in zip((a.score, a.logits, *a.memory), (b.score, b.logits, *b.memory), strict=True)
    )


def _step_function(step: _Step, inputs: Mapping[str, Pair], answers: bool, memories: int) -> FunctionProto:
    writes = [*([] if step.last else ["stays"]), *(["answer"] if answers else [])]
    writes += [f"memory{number}" for number in range(memories)]
    with silence_exporter():
        graph = export_function(None, Function(partial(_outputs, step, answers), inputs, writes))
    return _function(graph, list(inputs), writes)


@dataclass(frozen=True)
class _Step:
    """A policy at one exit, as a function of tensors."""

    policy: Policy
    exit: int
    layer: int
    problem_type: str
    certainty: bool
    last: bool

    def example(self, outputs: int, memory: Sequence[Memory]) -> dict[str, Pair]:
        """Return the inputs in the two examples: logits, certainty where there is a gate, limits, memory."""
        rows = [rows for rows, _ in SIZES]
        inputs = {"logits": (torch.randn(rows[0], outputs), torch.randn(rows[1], outputs))}
        vectors = [*(["certainty"] if self.certainty else []), *([] if self.last else ["limit"])]
        inputs |= {name: (torch.rand(rows[0]), torch.rand(rows[1])) for name in vectors}
        return inputs | {f"memory{number}": (memory[0][number], memory[1][number]) for number in range(len(memory[0]))}

    def take(self, values: Sequence[Tensor]) -> Step:
        """Take the step; values: logits, certainty where there is a gate, limit but at the last exit, memory."""
        logits, *state = values
        certainty = state.pop(0) if self.certainty else None
        memory = tuple(state if self.last else state[1:])
        out = ExitOutput(logits, certainty, layer=self.layer, problem_type=self.problem_type, last=self.last)
        return self.policy.step(self.exit, out, memory)


def _outputs(step: _Step, answers: bool, _: None, *values: Tensor) -> tuple[Tensor, ...]:
    taken = step.take(values)
    answer = (taken.logits,) if answers else ()
    if step.last:
        return answer
    limit = values[1 + step.certainty]
    return (continues(nan_where_invalid(taken.score.float(), taken.logits), limit), *answer, *taken.memory)


def _function(model: ModelProto, reads: Sequence[str], writes: Sequence[str]) -> FunctionProto:
    """Return an export as a function with constants in place of weights, named by a hash of its content."""
    constants = [helper.make_node("Constant", [], [weight.name], value=weight) for weight in model.graph.initializer]
    nodes = [*constants, *(without_origin(node) for node in model.graph.node)]
    content = b"".join(node.SerializeToString(deterministic=True) for node in nodes)
    name = f"step_{hashlib.sha256(content + repr((reads, writes)).encode()).hexdigest()[:16]}"
    opsets = [helper.make_opsetid("", OPSET)]
    return helper.make_function(DOMAIN, name, list(reads), [output_name(name) for name in writes], nodes, opsets)
