"""Whether the exit before the first layer is read, by hand: the surest rows leave there, right or wrong."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from offramp.calibration.certify import certify
from offramp.calibration.exit_choice import ExitChoice, choose_exits
from offramp.calibration.prepare import prepare_policy
from offramp.errors import InvalidInput
from offramp.policies.base import Policy
from offramp.policies.registry import load_policy
from offramp.types.cost_table import CostTable
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


@pytest.mark.parametrize(
    ("rows", "layers", "reason"),
    [
        (
            10,
            (0, 2, 4),
            "",
        ),  # each saves 2 of 4 layers: a mean of 5 %, and sqrt(10 x 0.45^2 + 90 x 0.05^2) / 100 = 1.5 %
        (2, (2, 4), "it saves 1.0% of the cost, with a standard error of 0.7%"),
        (0, (2, 4), "it saves nothing"),
    ],
)
def test_a_saving_that_may_be_chance_is_none(rows: int, layers: tuple[int, ...], reason: str) -> None:
    """Some rows are right and sure at layer 0, the others wrong and less sure than all rows at layer 2."""
    trace = trace_of(100)
    logits, certainties = trace.logits.clone(), trace.certainty.clone()
    logits[0, :rows] = logits[2, :rows]
    certainties[0] = torch.where(torch.arange(100) < rows, 0.95, 0.05)
    choice = choose_exits(replace(trace, logits=logits, certainty=certainties), certainty)
    assert choice == ExitChoice(layers)
    assert choice.reason == (f"the lexical exit is not read: for max_drop 0.01 on 100 rows {reason}" if reason else "")


def test_costs_are_multiply_accumulates_where_they_are_known() -> None:
    """What an exit saves is less than what it takes: 9 of the 10 that lead to layer 2."""
    trace = trace_of(0)
    cheap, dear = (torch.tensor([first, first + 10, first + 20]) for first in (1.0, 30.0))
    choices = [choose_exits(replace(trace, macs=macs.view(3, 1).expand(3, 100)), certainty) for macs in (cheap, dear)]
    assert [choice.layers for choice in choices] == [(0, 2, 4), (2, 4)]


@pytest.mark.parametrize(
    ("target", "layers"),
    [
        (Target(speedup=2), (2, 4)),  # all rows leave at layer 2 of 4
        (Target(speedup=2.1), (0, 2, 4)),
        (Target(latency_ms=2), (2, 4)),
        (Target(latency_ms=1.9), (0, 2, 4)),
    ],
)
def test_a_speed_that_is_out_of_reach_without_the_lexical_exit_has_it_read(
    target: Target, layers: tuple[int, ...]
) -> None:
    cost = CostTable((0, 2, 4), (0.5, 2.0, 4.0), 0.5, "torch-float32", 1, 12.5, "a processor")
    prepared = prepare_policy(trace_of(2), "certainty", target=target, cost=cost)
    assert prepared.exits == ExitChoice(layers)
    assert bool(prepared.report) is (layers == (2, 4))
    assert prepared.calibrate(target, cost=cost).exit_layers == layers


def test_rows_that_chose_the_exits_certify_nothing() -> None:
    trace = trace_of(2)
    choice = choose_exits(trace.take(torch.arange(60)), certainty)
    with pytest.raises(InvalidInput, match="the exits that are read were chosen on 10 of these rows"):
        certify(trace.take(torch.arange(50, 100)), "certainty", exits=choice)
    point = certify(trace.take(torch.arange(60, 100)), "certainty", exits=choice)
    assert (point.exit_layers, len(point.thresholds)) == ((2, 4), 1)


def four_exits(right: list[int]) -> Trace:
    """At the exits after layers 1 to 3 so many rows of 100 are right and sure, the others wrong and unsure."""
    logits, sure = torch.zeros(4, 100, 2), torch.zeros(4, 100)
    for exit, count in enumerate([*right, 100]):
        logits[exit] = F.one_hot((torch.arange(100) >= count).long(), 2) * torch.arange(1.0, 101).view(-1, 1)
        sure[exit] = torch.where(torch.arange(100) < count, 0.9, 0.1)
    return Trace(logits, torch.zeros(100), sure)


@pytest.mark.parametrize(
    ("price", "layers"),
    [
        (0.0, (1, 2, 3, 4)),  # reading is free: 40 rows leave at layer 1, 20 at 2, 10 at 3
        (0.2, (1, 2, 4)),  # at layer 3 40 rows pay 0.2 ms, and 10 save 1
        (0.6, (1, 4)),
    ],
)
def test_exits_are_read_that_save_more_time_than_they_take(price: float, layers: tuple[int, ...]) -> None:
    """A layer takes 1 ms and reading an exit after it `price` ms more."""
    ms = (1 + price, 2 + 2 * price, 3 + 3 * price, 4 + 3 * price)
    cost = CostTable((1, 2, 3, 4), ms, 0.0, "torch-float32", 1, 12.5, "a processor", exit_ms=(price,) * 3)
    trace = four_exits([40, 60, 70])
    choice = choose_exits(trace, certainty, Target(max_drop=0), cost=cost)
    assert choice.layers == layers
    assert set(choice.fitted_on) == set(row_hashes(trace))
    assert choice.reason.startswith("the exit") == (layers != (1, 2, 3, 4))
    assert choose_exits(trace, certainty, Target(max_drop=0), cost=replace(cost, exit_ms=None)) == ExitChoice(
        (1, 2, 3, 4)
    )
    slow = Target(latency_ms=cost.ms[0])  # which takes the exit at layer 1, whatever it costs
    point = prepare_policy(trace, "certainty", target=slow, cost=cost).calibrate(slow, cost=cost)
    assert point.exit_layers[0] == 1
