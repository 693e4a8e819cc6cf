"""Certificates on agreement: which level a threshold gets, and how often any of them is broken."""

import logging
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import binom

from offramp.calibration.agreement import LEVELS, agreement_bounds
from offramp.calibration.ladder import ladder
from offramp.calibration.outputs import PolicyOutputs, policy_outputs
from offramp.calibration.prepare import prepare_policy
from offramp.errors import InvalidInput, NotApplicable
from offramp.policies.fitting import fit_default_policy
from offramp.policies.replay import replay
from offramp.types.operating_point import OperatingPoint
from offramp.types.outputs import predictions
from offramp.types.problem_types import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from offramp.types.trace import Trace
from support.traces import random_trace


def differing(scores: torch.Tensor, differs: torch.Tensor) -> PolicyOutputs:
    """Exits with these scores (L-1, N), whose answers differ from the last one's where (L-1, N) is True."""
    last = torch.zeros_like(scores[:1])
    answers = torch.cat((differs.long(), last.long()))
    return policy_outputs(Trace(F.one_hot(answers, 2).float(), certainty=torch.cat((scores, last))), "certainty")


@pytest.mark.parametrize("rows", [40, 400])
def test_a_threshold_has_the_smallest_level_whose_tests_pass_down_to_it(rows: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    scores = torch.rand(2, rows, generator=generator)
    outputs = differing(scores, torch.rand(2, rows, generator=generator) > 1 - 0.5 * (1 - scores))
    bounds, open_levels, share = agreement_bounds(outputs, 0.1), list(LEVELS), 0.1 / len(LEVELS)
    assert bounds.certificate(math.inf) is not None or rows < 100
    kinds = set()
    for threshold in sorted({*scores.cummax(dim=0).values.flatten().tolist()}, reverse=True):  # the strictest first
        left = torch.where(scores[0] >= threshold, 0, torch.where(scores[1] >= threshold, 1, 2))
        lost = int((outputs.logits.argmax(dim=-1).gather(0, left[None]) != 0).sum())
        open_levels = [level for level in open_levels if binom.cdf(lost, rows, level) <= share]
        certificate = bounds.certificate(threshold)
        kinds.add(None if certificate is None else certificate.level)
        assert (None if certificate is None else certificate.level) == (open_levels[0] if open_levels else None)
        if certificate is not None:
            assert (certificate.risk, certificate.bound, certificate.delta) == ("agreement", certificate.level, 0.1)
            assert (certificate.observed, certificate.rows) == (lost / rows, rows)
    assert len(kinds) > 2


def test_all_bounds_of_a_draw_hold_at_once_as_often_as_they_say() -> None:
    """Scores are uniform, and a row's answer at either exit differs with probability (1 - score) / 2."""

    def risk(thresholds: torch.Tensor) -> torch.Tensor:  # by integration of (1 - s) / 2 from t to 1
        early = (1 - thresholds.clamp(max=1).double()).square() / 4
        return early + thresholds.clamp(max=1) * early

    delta, draws, broken, loosest = 0.4, 200, 0, []
    generator = torch.Generator().manual_seed(0)
    for _ in range(draws):
        scores = torch.rand(2, 150, generator=generator)
        differs = torch.rand(2, 150, generator=generator) < (1 - scores) / 2
        bounds = agreement_bounds(differing(scores, differs), delta)
        worst = [risk(bounds.thresholds[:count]).max().item() if count else 0.0 for count in bounds.accepted.tolist()]
        broken += any(risk > level for risk, level in zip(worst, LEVELS, strict=True))
        loosest.append(worst)
    assert 0 < broken <= delta * draws
    assert torch.tensor(loosest).mean(dim=0)[-1] > 0.2  # of 0.3: not for want of accepting anything


def differ_share(trace: Trace, point: OperatingPoint) -> float:
    answers = predictions(replace(trace.exit(0), logits=replay(trace, point.policy, point.thresholds).logits))
    return (answers != predictions(trace.exit(trace.depth - 1))).any(dim=-1).double().mean().item()


@pytest.mark.parametrize("problem_type", [SINGLE_LABEL, MULTI_LABEL])
@pytest.mark.parametrize("delta", [None, 0.2])
def test_every_rung_but_full_has_one(problem_type: str, delta: float | None) -> None:
    trace = random_trace(problem_type, samples=600)
    shares = torch.linspace(0.95, 1.0, trace.depth).view(-1, 1, 1)  # deeper exits are nearer to the last one
    trace = replace(trace, logits=trace.logits * (1 - shares) + trace.logits[-1] * shares)
    found = ladder(trace, "max-prob" if problem_type == SINGLE_LABEL else "entropy", delta=delta)
    assert len(found) > 2
    assert found["full"].agreement is None
    for name in list(found)[1:]:
        certificate = found[name].agreement
        assert certificate is not None
        assert certificate.delta == (0.05 if delta is None else delta)
        assert certificate.observed == differ_share(trace, found[name]) <= certificate.bound
        assert OperatingPoint.from_json(found[name].to_json()) == found[name] != replace(found[name], agreement=None)


def test_why_there_is_none_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "offramp")
    trace = random_trace(SINGLE_LABEL, samples=60)

    def reasons(found: dict[str, OperatingPoint]) -> list[str]:
        messages = [message for message in caplog.messages if "agreement" in message]
        caplog.clear()
        assert all(point.agreement is None for point in found.values())
        return messages

    fitted, _ = fit_default_policy(trace)
    expected = "no certificates on agreement: the policy was fitted on 60 of these rows"
    for make in (lambda: ladder(trace, fitted), prepare_policy(trace).ladder):
        assert [message.startswith(expected) for message in reasons(make())] == [True]
    found = ladder(random_trace(REGRESSION, samples=60, outputs=1), "stability")
    assert reasons(found) == ["no certificates on agreement: a regression has no answers to compare"]
    found = ladder(trace.take(torch.arange(12)), "max-prob")
    rungs = ", ".join(list(found)[1:])
    assert reasons(found) == [f"no certificate on agreement for {rungs}: not even 30 % holds on 12 rows"]


def test_what_cannot_be_bounded() -> None:
    outputs = policy_outputs(random_trace(SINGLE_LABEL, samples=60), "max-prob")
    with pytest.raises(InvalidInput, match="delta must be between 0 and 1"):
        agreement_bounds(outputs, 1.0)
    with pytest.raises(NotApplicable):
        agreement_bounds(policy_outputs(random_trace(REGRESSION, samples=60, outputs=1), "stability"))
    lexical = replace(
        outputs.trace, layers=torch.arange(outputs.trace.depth), fit_rows=torch.ones(60, dtype=torch.bool)
    )
    with pytest.raises(InvalidInput, match="60 of 60 rows fitted the exit before the first layer"):
        agreement_bounds(policy_outputs(lexical, "max-prob"))
