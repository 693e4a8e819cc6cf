"""Whether the exit before the first layer is read, by hand: the surest rows leave there, right or wrong."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from offramp.calibration.certify import certify
from offramp.calibration.exit_choice import ExitChoice, choose_exits
from offramp.errors import InvalidInput
from offramp.policies.base import Policy
from offramp.policies.registry import load_policy
from offramp.types.operating_point import Target
from offramp.types.trace import Trace, row_hashes

FALLING = torch.linspace(0.9, 0.1, 100)


def trace_of(wrong: int, layers: tuple[int, ...] = (0, 2, 4)) -> Trace:
    """At the first exit the `wrong` surest rows of 100 are wrong, elsewhere none."""
    answers = torch.zeros(len(layers), 100, dtype=torch.int64)
    answers[0, :wrong] = 1
    certainty = torch.stack([FALLING] * (len(layers) - 1) + [torch.zeros(100)])
    logits = F.one_hot(answers, 2) * torch.arange(1.0, 101).view(1, -1, 1)
    return Trace(logits, torch.zeros(100), certainty, torch.tensor(layers))


def certainty(trace: Trace) -> Policy:
    """Return a policy that needs no numbers."""
    return load_policy("certainty")


@pytest.mark.parametrize(
    ("trace", "target", "layers"),
    [
        (trace_of(0), None, (0, 2, 4)),
        (trace_of(2), None, (2, 4)),  # one row may be lost: one leaves at layer 0, or all at layer 2
        (trace_of(2), Target(max_drop=0.02), (0, 2, 4)),
        (replace(trace_of(2), labels=None), None, (2, 4)),
        (trace_of(2, (0, 4)), None, (0, 4)),  # without it no row could leave early
        (trace_of(2, (1, 2, 4)), None, (1, 2, 4)),
    ],
)
def test_the_lexical_exit_is_read_where_the_point_is_cheaper_with_it(
    trace: Trace, target: Target | None, layers: tuple[int, ...]
) -> None:
    choice = choose_exits(trace, certainty, target)
    assert choice == ExitChoice(layers)
    chose = trace.layer_numbers[0] == 0 and trace.depth == 3
    assert set(choice.fitted_on) == (set(row_hashes(trace)) if chose else set())


def test_rows_that_chose_the_exits_certify_nothing() -> None:
    trace = trace_of(2)
    choice = choose_exits(trace.take(torch.arange(60)), certainty)
    with pytest.raises(InvalidInput, match="the exits that are read were chosen on 10 of these rows"):
        certify(trace.take(torch.arange(50, 100)), "certainty", exits=choice)
    point = certify(trace.take(torch.arange(60, 100)), "certainty", exits=choice)
    assert (point.exit_layers, len(point.thresholds)) == ((2, 4), 1)
