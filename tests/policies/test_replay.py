import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import save_file

from offramp.early_exit.loop import run
from offramp.errors import InvalidInput
from offramp.policies.certainty import Certainty
from offramp.policies.confidence import Entropy, MaxProb
from offramp.policies.decision import thresholds_per_exit
from offramp.policies.fixed import Fixed
from offramp.policies.patience import Patience
from offramp.policies.pcee import PatientConfidence
from offramp.policies.registry import FITTED, POLICIES, load_policy, policy_to_dict
from offramp.policies.replay import replay, scores
from offramp.types.carry import Carry
from offramp.types.operating_point import Measured, OperatingPoint, read_points, write_points
from offramp.types.outputs import ExitOutput
from offramp.types.problem_types import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from offramp.types.trace import Trace
from support.traces import CASE_IDS, CASES, Recorded, assert_same, fitted, random_trace, threshold_between

EVERY_CASE = pytest.mark.parametrize(("data", "problem_type"), CASES, ids=CASE_IDS)


# --- every rule again, for one sample and in plain numbers ---------------------------------------------------


class Said(NamedTuple):
    """What one exit says of one sample."""

    logits: list[float]
    certainty: float
    layer: int
    problem_type: str

    @property
    def distributions(self) -> list[list[float]]:
        if self.problem_type == MULTI_LABEL:
            yes = [1 / (1 + math.exp(-logit)) for logit in self.logits]
            return [[1 - p, p] for p in yes]
        total = sum(math.exp(logit) for logit in self.logits)
        return [[math.exp(logit) / total for logit in self.logits]]

    @property
    def answer(self) -> Any:
        if self.problem_type == MULTI_LABEL:
            return {label for label, logit in enumerate(self.logits) if logit > 0}
        return self.logits.index(max(self.logits))


Past = list[Said]  # from the first exit up to now


def plain_entropy(past: Past, data: dict[str, Any]) -> float:
    return min(1 + sum(q * math.log(q) for q in p) / math.log(len(p)) for p in past[-1].distributions)


def plain_margin(past: Past, data: dict[str, Any]) -> float:
    return min(sorted(p)[-1] - sorted(p)[-2] for p in past[-1].distributions)


def plain_patience(past: Past, data: dict[str, Any]) -> float:
    count = 0
    for before, now in pairwise(past):
        count = count + 1 if before.answer == now.answer else 0
    return count


def plain_stability(past: Past, data: dict[str, Any]) -> float:
    changes = [max(abs(a - b) for a, b in zip(one.logits, two.logits, strict=True)) for one, two in pairwise(past)]
    patience = data["patience"]
    return -max(changes[-patience:]) if len(changes) >= patience else -math.inf


def plain_pcee(past: Past, data: dict[str, Any]) -> float:
    patience, measure = data["patience"], data["measure"]
    measure = measure if isinstance(measure, dict) else {"name": measure}
    if len(past) < patience:
        return -math.inf
    return min(plain_score(past[: len(past) - back], measure) for back in range(patience))


def plain_divergence(past: Past, data: dict[str, Any]) -> float:
    def apart(p: list[float], q: list[float]) -> float:
        middle = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
        kl = {
            name: sum(a * math.log(a / b) for a, b in zip(one, two, strict=True))
            for name, one, two in (("kl", p, q), ("left", p, middle), ("right", q, middle))
        }
        ce = -sum(a * math.log(b) for a, b in zip(p, q, strict=True))
        return {"ce": ce, "kl": kl["kl"], "js": (kl["left"] + kl["right"]) / 2}[data["divergence"]]

    *earlier, now = past
    found = [sum(apart(p, q) for p, q in zip(now.distributions, one.distributions, strict=True)) for one in earlier]
    patience = data["patience"]
    if len(found) < patience:
        return -math.inf
    return -max(found[-patience:]) if data["window"] == "consecutive" else -sorted(found)[patience - 1]


def plain_features(past: Past) -> list[float]:
    def worst(said: Said) -> float:
        return min(max(p) for p in said.distributions)

    now = past[-1]
    if now.problem_type == REGRESSION:
        moves = [max(abs(a - b) for a, b in zip(one.logits, two.logits, strict=True)) for one, two in pairwise(past)]
        level = [sum(now.logits) / len(now.logits), sum(value**2 for value in now.logits) / len(now.logits)]
        return level if len(past) == 1 else [*level, moves[-1], moves[-2] if len(moves) > 1 else 0.0]
    found = [worst(now), math.log(worst(now) / (1 - worst(now))), plain_margin(past, {})]
    if len(past) == 1:
        return found
    before, pairs = past[-2], list(zip(now.distributions, past[-2].distributions, strict=True))
    kl = sum(a * math.log(a / b) for p, q in pairs for a, b in zip(p, q, strict=True))
    return [*found, worst(before), plain_patience(past, {}), kl, min(q[p.index(max(p))] for p, q in pairs)]


def plain_fitted(past: Past, data: dict[str, Any]) -> float:
    constant, *weights = data["weights"][len(past) - 1]
    weighed = constant + sum(a * b for a, b in zip(weights, plain_features(past), strict=True))
    return weighed if past[-1].problem_type == REGRESSION else 1 / (1 + math.exp(-weighed))


PLAIN: dict[str, Callable[[Past, dict[str, Any]], float]] = {
    "certainty": lambda past, data: past[-1].certainty,
    "consistency": plain_fitted,
    "divergence": plain_divergence,
    "entropy": plain_entropy,
    "fixed": lambda past, data: past[-1].layer,
    "gain": plain_fitted,
    "margin": plain_margin,
    "max-prob": lambda past, data: min(max(p) for p in past[-1].distributions),
    "patience": plain_patience,
    "pcee": plain_pcee,
    "stability": plain_stability,
}


def plain_score(past: Past, data: dict[str, Any]) -> float:
    score = PLAIN[data["name"]](past, policy_to_dict(load_policy(data)))  # with the default parameters
    if "lines" in data:
        constant, slope = data["lines"][len(past) - 1]
        odds = max(score, 1e-9) / (1 - score)
        score = constant + slope * math.log(min(max(odds, 1e-5), 1e5))
    if "offsets" in data:
        score -= data["offsets"][past[-1].logits.index(max(past[-1].logits))]
    return score


def past_of(trace: Trace, row: int) -> Past:
    """All that the exits say of one sample."""
    return [
        Said(trace.logits[exit, row].tolist(), trace.certainty[exit, row].item(), layer, trace.problem_type)
        for exit, layer in enumerate(trace.layer_numbers)
    ]


def plain_scores(trace: Trace, data: dict[str, Any]) -> list[list[float]]:
    """(L, N): one sample after another, one exit after another."""
    pasts = [past_of(trace, row) for row in range(len(trace))]
    return [[plain_score(past[: exit + 1], data) for past in pasts] for exit in range(trace.depth)]


def plain_run(past: Past, data: dict[str, Any]) -> int:
    """How many exits agreed, or were ready, up to now."""
    data = policy_to_dict(load_policy(data))
    counts = {
        "divergence": lambda: data["patience"] + 1,
        "patience": lambda: plain_patience(past, data) + 1,
        "pcee": lambda: data["patience"],
        "stability": lambda: data["patience"] + 1,
    }
    return min(counts.get(data["name"], lambda: 1)(), len(past))


def plain_answer(past: Past, data: dict[str, Any], last: bool) -> list[float]:
    """What a sample is told that leaves now: probabilities, or values."""
    inner = policy_to_dict(load_policy(data)).get("measure", {})
    members = data.get("ensemble", inner.get("ensemble") if isinstance(inner, dict) else None)
    size = {None: 1, "all": len(past), "run": 1 if last else plain_run(past, data)}[members]
    said = [
        one.logits if one.problem_type == REGRESSION else [q for p in one.distributions for q in p]
        for one in past[-size:]
    ]
    return [sum(column) / size for column in zip(*said, strict=True)]


def plain_exit(column: Sequence[float], thresholds: Sequence[float]) -> int:
    """The 0-based exit of a sample with these scores."""
    for exit, threshold in enumerate(thresholds):
        if column[exit] >= threshold:
            return exit
    return len(thresholds)


def probabilities(logits: torch.Tensor, problem_type: str) -> torch.Tensor:
    """As a predictor reads them: softmax, or no and yes of each label in turn; a regression's values."""
    if problem_type == MULTI_LABEL:
        return torch.stack(((-logits).sigmoid(), logits.sigmoid()), dim=-1).flatten(1)
    return logits if problem_type == REGRESSION else logits.softmax(dim=-1)


KNOWN = [(case, name) for case, name in zip(CASES, CASE_IDS, strict=True) if case[0]["name"] in PLAIN]


@pytest.mark.parametrize(("data", "problem_type"), [case for case, _ in KNOWN], ids=[name for _, name in KNOWN])
def test_replay_is_the_plain_loop_over_samples(data: dict[str, Any], problem_type: str) -> None:
    trace, policy = random_trace(problem_type, layers=torch.tensor([1, 2, 4, 5, 8, 12])), load_policy(data)
    tempered = [logits / t for logits, t in zip(trace.logits, data.get("temperatures", [1.0] * 6), strict=True)]
    said = replace(trace, logits=torch.stack(tempered))
    plain = plain_scores(said, data)
    seen = torch.tensor(plain).float()
    noise = 1e-3 if "lines" in data else 0  # log-odds near 0 and 1 blow rounding up
    torch.testing.assert_close(scores(policy, trace), seen, rtol=noise, atol=1e-5)
    settings = [[threshold_between(seen[:-1], quantile)] * 5 for quantile in (0.0, 0.3, 0.6, 0.9)]
    settings += [[threshold_between(score, quantile) for score in seen[:-1]] for quantile in (0.5, 0.9)]
    for thresholds in settings:
        exits = [plain_exit(column, thresholds) for column in zip(*plain, strict=True)]
        for given in (thresholds, thresholds[0]) if len(set(thresholds)) == 1 else (thresholds,):
            answers = replay(trace, policy, given)
            assert answers.exit_layers.tolist() == [trace.layer_numbers[exit] for exit in exits]
            assert not answers.failed.any()
            if "ensemble" not in str(data):
                assert torch.equal(answers.logits, said.logits[exits, range(50)])
        told = [plain_answer(past_of(said, row)[: exit + 1], data, exit == 5) for row, exit in enumerate(exits)]
        assert torch.allclose(probabilities(answers.logits, problem_type), torch.tensor(told), atol=1e-5)


@EVERY_CASE
def test_a_score_does_not_depend_on_the_company(data: dict[str, Any], problem_type: str) -> None:
    trace, policy = random_trace(problem_type), load_policy(data)
    rows = torch.arange(0, 50, 4)
    alone = torch.cat([scores(policy, trace.take(row)) for row in rows.split(1)], dim=1)
    torch.testing.assert_close(scores(policy, trace)[:, rows], alone, rtol=0, atol=1e-6)


@EVERY_CASE
def test_the_loop_leaves_where_the_replay_does_in_any_batch(data: dict[str, Any], problem_type: str) -> None:
    trace, policy = random_trace(problem_type), load_policy(data)
    seen, random = scores(policy, trace), torch.Generator().manual_seed(3)
    settings: list[Any] = [threshold_between(seen[:-1], quantile) for quantile in (0.0, 0.5, 0.8, 0.95)]
    settings.append([threshold_between(score, 0.8) for score in seen[:-1]])
    for threshold, batch_sizes in zip(settings, [(50,), (50,), (50, 7, 1), (50, 13), (50, 13)], strict=True):
        wanted = replay(trace, policy, threshold)
        for batch_size in batch_sizes:
            for rows in torch.randperm(50, generator=random).split(batch_size)[:10]:
                found = run(Recorded(trace), policy, threshold, {"rows": rows})
                assert_same(found, wanted, rows, f"threshold {threshold}, rows {rows.tolist()}")


@EVERY_CASE
def test_exits_that_are_not_read_run_neither_in_the_loop_nor_in_a_replay(
    data: dict[str, Any], problem_type: str
) -> None:
    whole, policy = random_trace(problem_type, depth=9, layers=range(9)), load_policy(data)
    read = [0, 2, 3, 5, 6, 8]
    trace = whole.select(read)
    seen = scores(policy, trace)[:-1]
    for quantile, layers in ((0.5, set()), (0.8, {1, 4, 7})):
        wanted = replay(trace, policy, threshold_between(seen, quantile))
        segments, rows = Unread(whole, layers), torch.arange(50)
        found = run(segments, policy, threshold_between(seen, quantile), {"rows": rows}, exit_layers=read)
        assert_same(found, wanted)
        assert segments.blocks == [*range(1, 1 + int(wanted.exit_layers.max()))]


class Unread(Recorded):
    """Segments whose exits at some layers must not run."""

    def __init__(self, trace: Trace, layers: set[int]) -> None:
        super().__init__(trace)
        self.unread, self.blocks = layers, list[int]()

    def block(self, exit: int, carry: Carry) -> Carry:
        self.blocks.append(self.layers[exit])
        return carry

    def exit(self, exit: int, carry: Carry) -> ExitOutput:
        assert self.layers[exit] not in self.unread
        return super().exit(exit, carry)


def test_the_settings_of_these_tests_spread_samples_over_exits() -> None:
    for data, problem_type in CASES:
        trace, policy = random_trace(problem_type), load_policy(data)
        if data["name"] == "fixed":
            continue
        left = replay(trace, policy, threshold_between(scores(policy, trace)[:-1], 0.8)).exit_layers
        assert len(left.unique()) >= 3, data


def test_memory_stays_with_its_sample_when_others_leave() -> None:
    answers = torch.tensor([[0, 0, 0], [0, 1, 1], [0, 1, 0], [0, 1, 0], [0, 1, 0]])  # 5 exits, 3 samples
    trace = Trace(torch.nn.functional.one_hot(answers, 2).float())
    for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
        left = run(Recorded(trace), Patience(), 2, {"rows": torch.tensor(order)}).exit_layers.tolist()
        assert left == [[3, 4, 5][row] for row in order]


def test_an_empty_batch_gives_no_answers() -> None:
    trace = random_trace(SINGLE_LABEL)
    answers = run(Recorded(trace), Patience(), 2, {"rows": torch.tensor([], dtype=torch.int64)})
    assert answers.logits.shape == (0, 3)
    assert answers.exit_layers.tolist() == []


# --- thresholds ---------------------------------------------------------------------------------------------


@EVERY_CASE
def test_inf_never_leaves_early_and_minus_inf_always_does(data: dict[str, Any], problem_type: str) -> None:
    trace, policy = random_trace(problem_type, layers=torch.tensor([2, 3, 5, 7, 11, 12])), load_policy(data)
    for leaves in (
        lambda limit: replay(trace, policy, limit),
        lambda limit: run(Recorded(trace), policy, limit, {"rows": torch.arange(50)}),
    ):
        never, always = leaves(math.inf), leaves(-math.inf)
        assert set(never.exit_layers.tolist()) == {12}
        if "all" not in str(data):
            assert torch.equal(never.logits, trace.logits[-1])
        assert set(always.exit_layers.tolist()) == {2}
        assert torch.equal(always.logits, trace.logits[0] / data.get("temperatures", (1.0,))[0])


def test_a_score_on_the_threshold_leaves() -> None:
    trace = Trace(torch.zeros(3, 2, 2), certainty=torch.tensor([[0.5, 0.25], [0.5, 0.5], [0.0, 0.0]]))
    assert replay(trace, Certainty(), 0.5).exit_layers.tolist() == [1, 2]


def test_each_exit_has_its_own_threshold() -> None:
    certainty = torch.tensor([[0.9, 0.5, 0.3], [0.2, 0.6, 0.3], [0.1, 0.1, 0.4], [0.0, 0.0, 0.0]])
    trace = Trace(torch.zeros(4, 3, 2), certainty=certainty)
    assert replay(trace, Certainty(), (0.8, 0.5, 0.35)).exit_layers.tolist() == [1, 2, 3]
    assert replay(trace, Certainty(), (0.8, math.inf, 0.35)).exit_layers.tolist() == [1, 4, 3]
    assert replay(trace, Certainty(), torch.tensor([0.95, -math.inf, 0.35])).exit_layers.tolist() == [2, 2, 2]


def test_with_a_threshold_per_exit_pcee_compares_the_window_with_the_current_one() -> None:
    certainty = torch.tensor([[0.5, 0.9], [0.6, 0.9], [0.7, 0.9], [0.0, 0.0]])
    trace, policy = Trace(torch.zeros(4, 2, 2), certainty=certainty), PatientConfidence(Certainty(), 2)
    assert replay(trace, policy, (0.4, 0.55, 0.55)).exit_layers.tolist() == [3, 2]  # not (.5 > .4 and .6 > .55)


@pytest.mark.parametrize("thresholds", [[], [0.5] * 4, [0.5] * 6, torch.full((6,), 0.5)])
def test_the_wrong_number_of_thresholds_is_refused(thresholds: Any) -> None:
    trace = random_trace(SINGLE_LABEL)
    message = f"6 exits take 1 or 5 thresholds .* got {len(thresholds)}"
    with pytest.raises(InvalidInput, match=message):
        replay(trace, Entropy(), thresholds)
    with pytest.raises(InvalidInput, match=message):
        run(Recorded(trace), Entropy(), thresholds, {"rows": torch.arange(50)})


@pytest.mark.parametrize("thresholds", [math.nan, [0.5, 0.5, math.nan, 0.5, 0.5]])
def test_a_threshold_of_nan_is_refused(thresholds: Any) -> None:
    trace = random_trace(SINGLE_LABEL)
    with pytest.raises(InvalidInput, match="a threshold must be a number"):
        replay(trace, Entropy(), thresholds)
    with pytest.raises(InvalidInput, match="a threshold must be a number"):
        run(Recorded(trace), Entropy(), thresholds, {"rows": torch.arange(50)})
    with pytest.raises(InvalidInput, match="a threshold must be a number"):
        OperatingPoint({"name": "entropy"}, (math.nan,))


def test_the_last_exit_takes_no_threshold() -> None:
    assert thresholds_per_exit(3, 4) == [3, 3, 3, -math.inf]
    assert thresholds_per_exit([1, 2, math.inf], 4) == [1, 2, math.inf, -math.inf]
    assert thresholds_per_exit(0.5, 1) == thresholds_per_exit((), 1) == [-math.inf]


def test_exit_layers_are_layer_numbers() -> None:
    trace = random_trace(SINGLE_LABEL, depth=3, samples=4, layers=torch.tensor([2, 4, 6]))
    for layer in (2, 4, 6):
        answers = replay(trace, Fixed(), layer)
        assert answers.exit_layers.dtype == torch.int64
        assert answers.exit_layers.tolist() == [layer] * 4
    assert replay(random_trace(SINGLE_LABEL), Fixed(), 3).exit_layers.tolist() == [3] * 50


def test_logits_answer_for_their_own_sample() -> None:
    trace = Trace(torch.arange(24.0).view(3, 4, 2), certainty=torch.eye(4)[:3])  # square where a transpose would hide
    assert replay(trace, Certainty(), 0.5).exit_layers.tolist() == [1, 2, 3, 3]
    assert replay(trace, Certainty(), 0.5).logits.tolist() == [[0, 1], [10, 11], [20, 21], [22, 23]]


def test_replay_takes_a_policy_as_data() -> None:
    trace = random_trace(SINGLE_LABEL)
    point = OperatingPoint(policy_to_dict(PatientConfidence(MaxProb(), 3)), (0.7,) * 5)
    assert_same(replay(trace, point.policy, point.thresholds), replay(trace, PatientConfidence(MaxProb(), 3), 0.7))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(POLICIES))
def test_replaying_100_000_samples_for_100_thresholds_takes_seconds(name: str) -> None:
    problem_type = REGRESSION if name == "stability" else SINGLE_LABEL
    trace = random_trace(problem_type, depth=12, samples=100_000, outputs=2)
    policy = load_policy(fitted(name, exits=12) if name in FITTED else name)
    began = time.process_time()  # of one core, however busy the machine is
    for threshold in torch.linspace(0, 1, 100).tolist():
        replay(trace, policy, threshold)
    assert time.process_time() - began < 10


# --- traces -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"logits": torch.zeros(4, 3)}, r"\(exits, samples, outputs\), got \(4, 3\)"),
        ({"logits": torch.zeros(0, 4, 3)}, r"got \(0, 4, 3\)"),
        ({"logits": torch.zeros(2, 0, 3)}, r"got \(2, 0, 3\)"),
        ({"labels": torch.zeros(3)}, r"labels for 4 samples must be \(4,\), got \(3,\)"),
        ({"certainty": torch.zeros(4, 2)}, r"certainty must be \(2, 4\), got \(4, 2\)"),
        ({"layers": torch.tensor([1])}, r"2 exits needs 2 increasing layer numbers, got \[1\]"),
        ({"layers": [3, 3]}, r"increasing layer numbers, got \[3, 3\]"),
        ({"layers": [4, 2]}, r"increasing layer numbers, got \[4, 2\]"),
        ({"layers": [-1, 1]}, r"increasing layer numbers, got \[-1, 1\]"),
        ({"macs": torch.ones(2, 3)}, r"macs must be \(2, 4\), got \(2, 3\)"),
        ({"fit_rows": torch.ones(2)}, r"fit_rows must be \(4,\), got \(2,\)"),
        ({"tokens": torch.ones(3)}, r"tokens must be \(4,\), got \(3,\)"),
        ({"problem_type": "ranking"}, "problem_type must be one of .*; got 'ranking'"),
    ],
)
def test_a_trace_refuses_what_does_not_fit_together(parts: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        Trace(**{"logits": torch.zeros(2, 4, 3), **parts})


def test_a_trace_knows_its_kind_of_problem() -> None:
    logits = torch.zeros(2, 4, 3)
    assert Trace(logits).problem_type == SINGLE_LABEL
    assert Trace(logits, torch.zeros(4, dtype=torch.int64)).problem_type == SINGLE_LABEL
    assert Trace(logits, torch.zeros(4, 3)).problem_type == MULTI_LABEL
    assert Trace(logits[..., :1]).problem_type == REGRESSION
    assert Trace(logits, torch.zeros(4, 3), problem_type=REGRESSION).problem_type == REGRESSION
    assert ExitOutput(logits).problem_type == SINGLE_LABEL
    assert ExitOutput(logits[..., :1]).problem_type == REGRESSION


def test_a_trace_counts_exits_and_samples() -> None:
    trace = Trace(torch.zeros(3, 4, 2, dtype=torch.bfloat16))
    assert (trace.depth, len(trace), trace.layer_numbers, trace.logits.dtype) == (3, 4, [1, 2, 3], torch.float32)


def test_taking_rows_keeps_everything_else() -> None:
    trace = replace(random_trace(MULTI_LABEL, layers=torch.tensor([1, 2, 3, 4, 5, 9])), provenance={"engine": "torch"})
    trace = replace(trace, tokens=torch.arange(50), macs=torch.arange(300.0).view(6, 50), fit_rows=torch.arange(50) < 5)
    rows = torch.tensor([7, 2, 7])
    taken = trace.take(rows)
    assert taken.tokens.tolist() == [7, 2, 7]
    assert taken.macs[1].tolist() == [57, 52, 57]
    assert taken.fit_rows.tolist() == [False, True, False]
    assert torch.equal(taken.logits, trace.logits[:, [7, 2, 7]])
    assert torch.equal(taken.labels, trace.labels[[7, 2, 7]])
    assert torch.equal(taken.certainty, trace.certainty[:, [7, 2, 7]])
    assert (taken.layer_numbers, taken.problem_type) == ([1, 2, 3, 4, 5, 9], MULTI_LABEL)
    assert taken.provenance == trace.provenance


def test_a_trace_of_some_exits_keeps_their_outputs() -> None:
    trace = replace(random_trace(MULTI_LABEL, layers=[0, 1, 2, 3, 4, 9]), macs=torch.arange(300.0).view(6, 50))
    some = trace.select(torch.tensor([0, 3, 9]))
    assert some.layer_numbers == [0, 3, 9]
    assert torch.equal(some.logits, trace.logits[[0, 3, 5]])
    assert torch.equal(some.certainty, trace.certainty[[0, 3, 5]])
    assert torch.equal(some.macs, trace.macs[[0, 3, 5]])
    assert some.labels is trace.labels
    for layers in ([], [5], [3, 0], [3, 3]):
        with pytest.raises(InvalidInput, match=r"exits at layers|increasing layer numbers"):
            trace.select(layers)


@pytest.mark.parametrize("problem_type", [SINGLE_LABEL, MULTI_LABEL, REGRESSION])
def test_a_trace_is_saved_and_loaded_whole(tmp_path: Path, problem_type: str) -> None:
    trace = random_trace(problem_type, layers=torch.tensor([0, 4, 6, 8, 10, 12]))
    trace = replace(trace, macs=torch.rand(6, 50), fit_rows=torch.arange(50) < 5)
    trace = replace(trace, logits=trace.logits.transpose(1, 2).contiguous().transpose(1, 2))  # not in one piece
    trace = replace(trace, provenance={"data": "dév 2.csv", "engine": "torch-float32"}, tokens=torch.arange(50))
    trace.save(tmp_path / "a.safetensors")
    loaded = Trace.load(tmp_path / "a.safetensors")
    for name in ("logits", "labels", "certainty", "layers", "tokens", "macs", "fit_rows"):
        assert torch.equal(getattr(loaded, name), getattr(trace, name))
    assert (loaded.problem_type, loaded.provenance) == (problem_type, trace.provenance)


def test_a_bare_trace_is_saved_and_loaded(tmp_path: Path) -> None:
    Trace(torch.ones(2, 3, 1)).save(str(tmp_path / "a"))
    loaded = Trace.load(str(tmp_path / "a"))
    assert (loaded.labels, loaded.certainty, loaded.problem_type, loaded.provenance) == (None, None, REGRESSION, {})
    assert loaded.tokens is None


def test_a_file_that_is_no_trace_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("id,label\n1,2\n")
    (tmp_path / "empty").touch()
    (tmp_path / "folder").mkdir()
    save_file({"weight": torch.zeros(2)}, tmp_path / "weights", {"format": "pt"})
    save_file({"logits": torch.zeros(2, 2, 2)}, tmp_path / "logits")
    for name in ("text", "empty", "folder", "weights", "logits", "missing"):
        with pytest.raises(InvalidInput, match=f"{name}: .*trace"):
            Trace.load(tmp_path / name)


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({}, {"problem_type": SINGLE_LABEL}),
        ({"more": torch.zeros(1)}, {"problem_type": SINGLE_LABEL, "about": "{}"}),
        ({}, {"problem_type": SINGLE_LABEL, "about": "{"}),
    ],
)
def test_a_file_that_is_nearly_a_trace_is_refused_by_name(
    tmp_path: Path, tensors: dict[str, torch.Tensor], words: dict[str, str]
) -> None:
    save_file({"logits": torch.zeros(2, 2, 2), **tensors}, tmp_path / "nearly", words)
    with pytest.raises(InvalidInput, match="nearly"):
        Trace.load(tmp_path / "nearly")


@pytest.mark.parametrize(
    ("problem_type", "labels"),
    [
        (MULTI_LABEL, torch.zeros(4)),
        (MULTI_LABEL, torch.zeros(4, 2)),
        (SINGLE_LABEL, torch.zeros(4, 3)),
        (REGRESSION, torch.zeros(4, 2)),
    ],
)
def test_labels_must_fit_the_kind_of_problem(problem_type: str, labels: torch.Tensor) -> None:
    with pytest.raises(InvalidInput, match="labels"):
        Trace(torch.zeros(2, 4, 3), labels, problem_type=problem_type)


@pytest.mark.parametrize("labels", [[0, 1, 2, 3], [0, -1, 0, 0]])
def test_labels_must_be_classes_of_the_trace(labels: list[int]) -> None:
    with pytest.raises(InvalidInput, match=f"from 0 to 2, got {min(labels)} to {max(labels)}"):
        Trace(torch.zeros(2, 4, 3), torch.tensor(labels))


def test_one_output_cannot_be_a_choice_among_classes() -> None:
    with pytest.raises(InvalidInput, match="one output is a regression"):
        Trace(torch.randn(2, 4, 1), problem_type=SINGLE_LABEL)


# --- operating points ---------------------------------------------------------------------------------------

POINT = OperatingPoint(
    policy_to_dict(PatientConfidence(Certainty(), 3)),
    (0.25, math.inf, -math.inf, 1 / 3),
    {"max_drop": 0.01},
    Measured("accuracy", 0.9, 0.91, 0.97, 2.5, 12, 1000, {"data": "dev", "engine": "torch-float32"}),
)


def test_an_operating_point_goes_through_json_and_back() -> None:
    text = json.dumps(POINT.to_json(), allow_nan=False)
    assert '"thresholds": [0.25, "never", "always", 0.3333333333333333]' in text
    assert OperatingPoint.from_json(json.loads(text)) == POINT


def test_an_operating_point_set_by_hand_goes_through_json_and_back() -> None:
    point = OperatingPoint({"name": "patience"}, (2, 3))
    assert point.thresholds == (2.0, 3.0)
    assert OperatingPoint.from_json(json.loads(json.dumps(point.to_json()))) == point


def test_a_point_names_the_exits_that_it_reads() -> None:
    point = OperatingPoint({"name": "margin"}, (1.0, 2.0), exit_layers=[0, 3, 6])
    assert OperatingPoint.from_json(json.loads(json.dumps(point.to_json()))) == point
    assert point.layers_read(range(7)) == (0, 3, 6)
    older = replace(point, exit_layers=None)
    assert "exit_layers" not in older.to_json()
    assert older.layers_read([2, 4, 6]) == (2, 4, 6)
    assert older.layers_read([0, 2, 4, 6]) == (2, 4, 6)  # the exit before the first layer was added later
    refused = ([0, 3, 4, 6, 7], point), ([1, 3, 6], point), ([1, 2, 3, 4], older), ([0, 2, 4, 6, 8], older)
    for layers, reader in refused:
        with pytest.raises(InvalidInput, match=r"the last one must be read|exits take"):
            reader.layers_read(layers)
    for layers in ([0, 3], [3, 0, 6], [0, 0, 6], [-1, 3, 6], [0, 3.0, 6]):
        with pytest.raises(InvalidInput, match="3 increasing layer numbers"):
            replace(point, exit_layers=layers)


def test_operating_points_are_written_and_read_by_name(tmp_path: Path) -> None:
    points = {"default": POINT, "fast": replace(POINT, thresholds=(-math.inf,) * 4, measured=None)}
    write_points(points, tmp_path / "points.json")
    assert read_points(tmp_path / "points.json") == points
    assert [path.name for path in tmp_path.iterdir()] == ["points.json"]


def test_what_was_measured_gives_speedup_and_saving() -> None:
    measured = Measured(None, None, None, None, mean_exit=3.0, depth=12, rows=5)
    assert (measured.speedup, measured.saving) == (4.0, 0.75)
