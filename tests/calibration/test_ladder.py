"""Ladders by hand: one threshold after another, and which rung stands where."""

import json
import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from offramp.calibration.bounds import binomial
from offramp.calibration.certify import certify
from offramp.calibration.ladder import ladder
from offramp.errors import InvalidInput, NotApplicable
from offramp.inference.predictor import Predictor
from offramp.inference.record import record
from offramp.policies.fitting import fit_default_policy
from offramp.policies.replay import replay
from offramp.types.ladder_names import DROPS, LADDER_NAMES
from offramp.types.operating_point import POINTS_FILE, Certificate, OperatingPoint, read_points
from offramp.types.problem_types import REGRESSION, SINGLE_LABEL
from offramp.types.trace import Trace
from support.command_line import offramp
from support.models import LAYERS, balanced, save_folder, texts, tiny_model
from support.traces import random_trace


def one_by_one(wrong: list[int], samples: int = 300, layers: tuple[int, int] = (1, 4)) -> Trace:
    """Two exits; as the threshold falls the samples leave in order, and these answer wrong there. The last is right."""
    early = torch.zeros(samples, dtype=torch.int64)
    early[wrong] = 1
    answers = torch.stack((early, torch.zeros_like(early)))
    certainty = torch.stack((torch.linspace(0.9, 0.1, samples), torch.zeros(samples)))
    return Trace(F.one_hot(answers, 2).float(), torch.zeros(samples), certainty, torch.tensor(layers))


def test_a_ladder_by_hand(caplog: pytest.LogCaptureFixture) -> None:
    # of 300: 0.5 % lets 1 be lost, 1 % 3, 2 % 6; with k of them gone the mean exit is 4 - k / 100
    trace = one_by_one([99, 199, 249, 259, 269, 279, 289])
    with caplog.at_level(logging.INFO, "offramp"):
        found = ladder(trace, "certainty")
    gone = {"full": 0, "keep-99.5": 199, "2x": 200, "keep-99": 259, "keep-98": 289, "4x": 300}
    assert list(found) == list(gone)
    for name, count in gone.items():
        left = replay(trace, found[name].policy, found[name].thresholds).exit_layers == 1
        assert left.tolist() == [True] * count + [False] * (300 - count)
        assert found[name].measured.mean_exit == pytest.approx(4 - count / 100)
        assert found[name].certificate is None
    assert found["full"].thresholds == (math.inf,)
    assert [found[name].target for name in ("full", "keep-99", "2x")] == [{}, {"max_drop": 0.01}, {"speedup": 2.0}]
    assert caplog.messages == []


def test_rungs_stand_by_cost_and_not_by_layers() -> None:
    # k of 300 gone take 300 * 100 - 99 k: half of the full cost from k = 152 on, a quarter from 228
    trace = replace(one_by_one([99, 199, 249, 259, 269, 279, 289]), macs=torch.tensor([[1.0], [100.0]]).expand(2, 300))
    found = ladder(trace, "certainty")
    gone = {"full": 0, "2x": 152, "keep-99.5": 199, "4x": 228, "keep-99": 259, "keep-98": 289}
    assert {name: round(100 * (4 - point.measured.mean_exit)) for name, point in found.items()} == gone
    assert list(found) == list(gone)


def test_a_rung_that_is_no_faster_is_left_out_and_said_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "offramp"):
        found = ladder(one_by_one([]), "certainty")
    assert list(found) == ["full", "2x", "keep-99.5"]
    assert [found[name].measured.mean_exit for name in found] == [4, 2, 1]
    assert caplog.messages == [f"without {name}: no faster than keep-99.5" for name in ("keep-99", "keep-98", "4x")]


def test_a_rung_that_cannot_be_reached_is_left_out_and_said_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "offramp"):
        found = ladder(one_by_one([0, 1, 2, 3], samples=100, layers=(2, 4)), "certainty")
    assert list(found) == ["full", "keep-99", "keep-98", "2x"]
    assert [found[name].measured.mean_exit for name in found] == pytest.approx([4, 3.98, 3.96, 2])
    assert caplog.messages[0].startswith("without 4x: ")
    assert caplog.messages[0].endswith("the best is 2")
    assert caplog.messages[1:] == ["without keep-99.5: no faster than full"]


@pytest.mark.parametrize("policy", ["entropy", "patience", {"name": "pcee", "patience": 2}])
def test_every_rung_is_faster_and_nobody_leaves_later_there(policy: Any) -> None:
    trace = random_trace(SINGLE_LABEL, samples=200)
    found = ladder(trace, policy)
    assert set(found) <= set(LADDER_NAMES)
    exits = torch.stack([replay(trace, each.policy, each.thresholds).exit_layers for each in found.values()])
    assert len(found) > 2
    assert (exits.diff(dim=0) <= 0).all()
    assert (exits.double().mean(dim=1).diff() < 0).all()


def test_a_ladder_of_values_keeps_their_correlation() -> None:
    found = ladder(random_trace(REGRESSION, samples=100, outputs=1), "stability")
    assert next(iter(found)) == "full"
    assert {point.measured.metric for point in found.values()} == {"pearson"}
    with pytest.raises(NotApplicable):
        ladder(random_trace(REGRESSION, samples=100, outputs=1), "stability", delta=0.1)


def test_a_ladder_needs_labels_and_exits() -> None:
    with pytest.raises(InvalidInput, match="needs labels"):
        ladder(Trace(torch.randn(3, 5, 2)), "entropy")
    with pytest.raises(InvalidInput, match="one exit"):
        ladder(random_trace(SINGLE_LABEL, depth=1), "entropy")


# --- certified --------------------------------------------------------------------------------------------------------


def test_a_certified_ladder_shares_delta_among_its_promises() -> None:
    trace = one_by_one(list(range(5, 3000, 100)), samples=3000)  # 1 % lost, evenly
    found = ladder(trace, "certainty", delta=0.06)
    assert list(found) == ["full", "keep-99.5", "keep-99", "2x", "keep-98"]
    for name, drop in DROPS.items():
        assert replace(found[name], agreement=None) == certify(trace, "certainty", "drop", drop, 0.02)
        assert found[name].thresholds[0] > certify(trace, "certainty", "drop", drop, 0.06).thresholds[0] - 1e-12
    assert isinstance(found["keep-98"].certificate, Certificate)
    assert found["2x"].certificate is None


def test_a_rung_that_cannot_be_certified_says_how_many_rows_it_takes(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "offramp"):
        found = ladder(one_by_one([]), "certainty", delta=0.05)
    assert list(found) == ["full", "2x", "keep-98"]
    assert (
        "without keep-99.5: no faster than full (cannot certify an early exit on 300 rows; needs about" in caplog.text
    )


def test_rungs_at_the_full_delta_would_break_one_promise_too_often() -> None:
    """The riskiest case: at the thresholds where the rungs go wrong the risks are just their levels."""
    rows, delta, levels = 2000, 0.05, list(DROPS.values())
    shares = np.diff([0, *levels, 1])  # lost from the first of these thresholds on, from the second, ...
    lost = np.random.default_rng(0).multinomial(rows, shares, 20_000)[:, :-1].cumsum(axis=1)  # (20,000, 3)

    def any_broken(each: float) -> float:
        passes = [binomial(rows, level).numpy()[lost[:, rung]] <= each for rung, level in enumerate(levels)]
        return float(np.any(passes, axis=0).mean())

    assert any_broken(delta) > 1.5 * delta
    assert any_broken(delta / len(levels)) <= delta


# --- on the command line ----------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_folder(tmp_path / "model", balanced(tiny_model(id2label={0: "x", 1: "y", 2: "z"}, pooling="mean")))


@pytest.fixture
def data(folder: Path, tmp_path: Path) -> Path:
    """Texts with the full model's own answers, but for every tenth."""
    lines = texts(400, seed=3)
    full = Predictor.load(folder)(lines)
    rows = [
        {"text": text, "label": "xyz"[number % 3] if number % 10 == 0 else told["label"]}
        for number, (text, told) in enumerate(zip(lines, full, strict=True))
    ]
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_ladder_is_saved_beside_other_points_in_one_write(folder: Path, data: Path) -> None:
    assert offramp("calibrate", folder, "--data", data, "--speedup", 1.5).exit_code == 0
    old = OperatingPoint({"name": "entropy"}, (0.5,) * (LAYERS - 1))
    points = read_points(folder / POINTS_FILE)
    from offramp.model.card import save_points

    save_points({"full": old, **points, "keep-99.5": old}, folder)
    outcome = offramp("calibrate", folder, "--data", data, "--ladder")
    assert outcome.exit_code == 0, outcome.output
    saved = read_points(folder / POINTS_FILE)
    trace = record(folder, data)
    found = ladder(trace, fit_default_policy(trace)[0])
    assert list(saved) == ["default", *found]
    assert {point.policy["name"]: set(point.policy) for point in saved.values()} == {"margin": {"name"}}
    assert {name: point.thresholds for name, point in saved.items() if name != "default"} == {
        name: point.thresholds for name, point in found.items()
    }
    assert saved["default"] == points["default"]
    for name in found:
        assert any(line.startswith(f"{name} ") for line in outcome.stdout.splitlines())
    told = json.loads(offramp("calibrate", folder, "--data", data, "--ladder", "--json").stdout)
    assert list(told["points"]) == list(found)


def test_a_certified_ladder_needs_a_trace_of_these_weights(folder: Path, data: Path, tmp_path: Path) -> None:
    outcome = offramp("calibrate", folder, "--data", data, "--ladder", "--confidence", 0.5)
    assert outcome.exit_code == 0, outcome.output
    promised = {name: point.certificate for name, point in read_points(folder / POINTS_FILE).items()}
    deltas = {promise.delta for promise in promised.values() if promise}
    assert deltas == {0.5 / 3}
    for name, promise in promised.items():
        assert promise is None or f"{name}: {promise.describe()}" in outcome.stdout
    before = (folder / POINTS_FILE).read_text()
    record(balanced(tiny_model(seed=5)), [{"input_ids": [5, 6], "labels": 0}] * 9).save(tmp_path / "other.st")
    outcome = offramp("calibrate", folder, "--trace", tmp_path / "other.st", "--ladder", "--confidence", 0.5)
    assert outcome.exit_code == 1
    assert "no certificate can hold for them" in outcome.stderr
    assert (folder / POINTS_FILE).read_text() == before


@pytest.mark.parametrize(
    "options",
    [
        ("--max-drop", 0.01),
        ("--speedup", 2),
        ("--agreement", 0.9),
        ("--latency-ms", 5),
        ("--name", "mine"),
        ("--confidence", 0.9, "--metric", "macro-f1"),
    ],
)
def test_a_ladder_goes_with_no_target_and_no_name(options: tuple[Any, ...], folder: Path, data: Path) -> None:
    outcome = offramp("calibrate", folder, "--data", data, "--ladder", *options)
    assert outcome.exit_code == 2
    assert "--ladder" in outcome.stderr
    assert not (folder / POINTS_FILE).exists()
