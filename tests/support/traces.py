"""Random traces, a model that reads a trace back, and every policy with every problem where it has a meaning."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from offramp.errors import NotApplicable
from offramp.policies.base import Policy
from offramp.policies.fitting import fit_policy
from offramp.policies.registry import FITTED, POLICIES, load_policy, policy_to_dict
from offramp.policies.replay import scores
from offramp.types.carry import Carry
from offramp.types.outputs import Answers, ExitOutput
from offramp.types.problem_types import MULTI_LABEL, PROBLEM_TYPES, REGRESSION, SINGLE_LABEL
from offramp.types.trace import Trace
from support.models import LIKE_BERT


class Recorded:
    """Segments that read a trace back instead of computing: `hidden` is the sample's number."""

    def __init__(self, trace: Trace) -> None:
        self.trace, self.layers = trace, trace.layer_numbers

    def lexical(self, inputs: Mapping[str, Tensor]) -> ExitOutput:
        assert self.layers[0] == 0
        return self.exit(0, self.embed(inputs))

    def embed(self, inputs: Mapping[str, Tensor]) -> Carry:
        return Carry(inputs["rows"])

    def block(self, exit: int, carry: Carry) -> Carry:
        return carry

    def exit(self, exit: int, carry: Carry) -> ExitOutput:
        whole, rows = self.trace.exit(exit), carry.hidden
        certainty = None if whole.certainty is None else whole.certainty[rows]
        return replace(whole, logits=whole.logits[rows], certainty=certainty)


def random_trace(
    problem_type: str, *, depth: int = 6, samples: int = 50, outputs: int = 3, seed: int = 0, layers: Any = None
) -> Trace:
    """Return a trace with labels and certainty; deeper exits have less noise, as in a trained model."""
    random = torch.Generator().manual_seed(seed)
    truth = torch.randn(samples, outputs, generator=random)
    noise = torch.randn(depth, samples, outputs, generator=random) / torch.arange(1, depth + 1).view(-1, 1, 1)
    certainty = torch.rand(depth, samples, generator=random)
    labels: Tensor = {REGRESSION: truth, MULTI_LABEL: (truth > 0).long()}.get(problem_type, truth.argmax(dim=-1))
    return Trace(truth + 2 * noise, labels, certainty, layers, problem_type)


def fitted(name: str, problem_type: str = SINGLE_LABEL, exits: int = 6) -> dict[str, Any]:
    """A policy that needs numbers, as data, fitted on a random trace."""
    return policy_to_dict(fit_policy(name, random_trace(problem_type, depth=exits)))


def example(name: str) -> dict[str, Any]:
    """A row of the table as data; with numbers, if it needs some."""
    return fitted(name) if name in FITTED else {"name": name}


def first_exits(data: Mapping[str, Any], exits: int) -> dict[str, Any]:
    """A policy's data, its fitted numbers cut to a model of so few exits."""
    return {key: value[:exits] if key in ("weights", "temperatures", "lines") else value for key, value in data.items()}


def first_classes(data: Mapping[str, Any], outputs: int) -> dict[str, Any]:
    """A policy's data, its class offsets cut to so many classes."""
    return {key: value[:outputs] if key == "offsets" else value for key, value in data.items()}


TEMPERATURES = (2.0, 0.5, 1.5, 1.25, 0.75, 1.0)  # the last one leaves the full model's answer as it is

LINES = ((0.5, 1.0), (-1.0, 2.0), (0.0, 0.5), (1.5, 0.75), (-0.5, 1.25), (0.25, 1.5))
OFFSETS = (0.0, 0.25, -0.5)


def _variants() -> list[dict[str, Any]]:
    """Every row of the table as it is, and the parameters that change how a policy remembers."""
    more: list[dict[str, Any]] = [
        {"name": "stability", "patience": 1},
        {"name": "stability", "patience": 3},
        {"name": "pcee", "patience": 1},
        {"name": "pcee", "measure": "max-prob", "patience": 2},
        {"name": "pcee", "measure": "certainty", "patience": 3},
        {"name": "pcee", "measure": "patience", "patience": 2},
        {"name": "pcee", "measure": {"name": "stability", "patience": 2}, "patience": 2},
        {"name": "divergence", "divergence": "ce", "patience": 3},
        {"name": "divergence", "divergence": "kl", "patience": 2},
        {"name": "divergence", "divergence": "js", "patience": 2, "window": "consecutive"},
        {"name": "divergence", "divergence": "ce", "patience": 3, "window": "consecutive"},
        {"name": "pcee", "measure": {"name": "divergence", "divergence": "js", "patience": 1, "window": "all"}},
        *({**example(name), "ensemble": "run"} for name in sorted(POLICIES)),
        {"name": "pcee", "measure": "certainty", "patience": 3, "ensemble": "run"},
        {"name": "divergence", "divergence": "kl", "patience": 2, "window": "consecutive", "ensemble": "run"},
        *({"name": name, "ensemble": "all"} for name in ("certainty", "entropy", "patience", "pcee", "stability")),
        {"name": "pcee", "measure": {"name": "entropy", "ensemble": "all"}, "patience": 2},
        fitted("consistency", REGRESSION),
        {"name": "margin", "temperatures": TEMPERATURES},
        {"name": "divergence", "divergence": "kl", "patience": 2, "temperatures": TEMPERATURES},
        *({"name": name, "lines": LINES} for name in ("certainty", "entropy", "margin")),
        {"name": "max-prob", "lines": LINES, "ensemble": "run"},
        {"name": "patience", "offsets": OFFSETS},
        {"name": "margin", "lines": LINES, "offsets": OFFSETS, "ensemble": "run"},
        {"name": "pcee", "patience": 2, "temperatures": TEMPERATURES, "ensemble": "run"},
    ]
    return [example(name) for name in sorted(POLICIES)] + more


def has_meaning(policy: Policy, problem_type: str, depth: int = 6) -> bool:
    """Return True where a policy can score this kind of problem."""
    try:
        scores(policy, random_trace(problem_type, depth=depth))
    except NotApplicable:
        return False
    return True


CASES = [
    (data, problem_type)
    for data in _variants()
    for problem_type in PROBLEM_TYPES
    if has_meaning(load_policy(data), problem_type)
]
CASE_IDS = [
    "-".join([*(key if isinstance(value, tuple) else str(value) for key, value in data.items()), problem.split("_")[0]])
    for data, problem in CASES
]
"""Every policy with every kind of problem where it has a meaning: parameters for the contract tests."""


def threshold_between(values: Tensor, quantile: float) -> float:
    """Return a threshold near a quantile of the finite scores, in the widest gap there, clear of rounding."""
    finite = values[values.isfinite()].double().unique()  # sorted
    if len(finite) < 2:
        return float(finite[0]) - 0.5 if len(finite) else 0.0
    middle = min(int(quantile * (len(finite) - 1)), len(finite) - 2)
    near = range(max(0, middle - 4), min(len(finite) - 1, middle + 5))
    widest = max(near, key=lambda index: float(finite[index + 1] - finite[index]))
    return float(finite[widest] + finite[widest + 1]) / 2


def assert_same(
    got: Answers, wanted: Answers, rows: Sequence[int] | Tensor | slice = slice(None), case: object = ""
) -> None:
    """The same exits, logits and failures; `rows` picks the wanted ones, `case` goes into the message."""
    assert torch.equal(got.exit_layers, wanted.exit_layers[rows]), f"exits: {case}"
    torch.testing.assert_close(
        got.logits, wanted.logits[rows], rtol=0, atol=1e-6, equal_nan=True, msg=lambda text: f"{text}\n{case}"
    )
    assert torch.equal(got.failed, wanted.failed[rows]), f"failures: {case}"


def crossed(families: Sequence[str], choices: Iterable[str], few: Collection[str]) -> list[Any]:
    """Parameters (family, choice): BERT with every choice and others with the few; all other pairs are slow."""

    def is_few(family: str, choice: str) -> bool:
        return choice in few and family not in LIKE_BERT

    return [
        pytest.param(family, choice, marks=() if family == "bert" or is_few(family, choice) else pytest.mark.slow)
        for choice in choices
        for family in families
    ]


def is_plain(data: Mapping[str, Any]) -> bool:
    """Whether a policy is a row of the table as it is, or one of two that stand for what goes around others."""
    return set(data) <= {"name", "weights", "fitted_on"} or data in (
        {"name": "pcee", "ensemble": "run"},
        {"name": "margin", "lines": LINES},
    )


PLAIN_CASES = [
    pytest.param(data, problem_type, id=case_id, marks=() if is_plain(data) else pytest.mark.slow)
    for (data, problem_type), case_id in zip(CASES, CASE_IDS, strict=True)
]
"""The same cases for what does not look at the policy; those with parameters are slow."""
