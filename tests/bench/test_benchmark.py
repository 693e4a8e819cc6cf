import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from offramp.bench import baselines
from offramp.bench import timer as bench
from offramp.bench.baselines import Baseline, plain
from offramp.bench.compare import BenchmarkResult, run_benchmark
from offramp.bench.compare import BenchmarkRow as Row
from offramp.bench.summary import benchmark_text, conclusion
from offramp.bench.timer import LayerCostModel, SpeedupRange, Times, median, time_batches, time_interleaved
from offramp.inference.export import export
from offramp.inference.record import record
from offramp.inference.torch_engine import TorchEngine
from offramp.model.card import save_points
from offramp.model.lexical.config import LexicalExit
from offramp.model.loading import load_model
from offramp.policies.registry import load_policy
from offramp.policies.replay import replay, scores
from offramp.types.operating_point import OperatingPoint, fixed_depth_point
from support.command_line import offramp
from support.models import LAYERS, balanced, padded, save_folder, text_rows, texts, tiny_model


class Clock:
    """A clock that only work advances."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def work(self, seconds: float) -> Tensor:
        self.now += seconds
        return torch.zeros(1, 2)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(bench, "time", clock)
    return clock


def test_runs_take_turns_and_the_first_round_does_not_count(clock: Clock) -> None:
    calls: list[tuple[str, int]] = []

    def run(name: str, number: int) -> None:
        calls.append((name, number))
        clock.work(100 if number == 0 else number)

    seconds = time_interleaved({name: lambda number, name=name: run(name, number) for name in "ab"}, 2)
    assert calls == [("a", 0), ("b", 0), ("a", 1), ("b", 1), ("a", 2), ("b", 2)]
    assert seconds == {"a": [1, 2], "b": [1, 2]}
    assert median([3.0, 1.0, 2.0, 10.0]) == 2.5


def test_a_turn_is_all_batches_behind_one_that_does_not_count(clock: Clock) -> None:
    batches = [{"input_ids": torch.full((rows, 3), rows)} for rows in (4, 2, 1)]
    sizes: list[int] = []

    def run(inputs: dict[str, Tensor]) -> Tensor:
        sizes.append(len(inputs["input_ids"]))
        return clock.work(float(len(inputs["input_ids"])))

    times, answers = time_batches({"one": run}, batches, 2)
    assert sizes == [4, 2, 1] + 2 * [4, 4, 2, 1]
    assert times["one"].seconds.tolist() == [[4, 2, 1], [4, 2, 1]]
    assert times["one"].rows.tolist() == [4, 2, 1]
    assert len(answers["one"]) == 3


def test_percentiles_are_over_batches_and_their_median_rounds() -> None:
    # batches of 2, 2 and 1 rows; the medians of the rounds are 2, 4 and 3 seconds: 1, 2 and 3 a sample
    times = Times(torch.tensor([[2.0, 4, 3], [1, 40, 3], [9, 4, 1]]), torch.tensor([2, 2, 1]))
    assert times.ms(0.5) == 2000
    assert times.ms(1.0) == 3000
    assert times.ms(0.75) == 2500
    assert times.passes == [9, 44, 14]
    assert times.per_second == 5 / 14


def test_a_ratio_is_taken_round_by_round() -> None:
    rows = torch.tensor([1])
    slower, faster = (Times(torch.tensor(seconds), rows) for seconds in ([[4.0], [9], [5]], [[2.0], [3], [5]]))
    assert SpeedupRange.of(slower, faster) == SpeedupRange(2, 1, 3)


def test_a_line_separates_the_embedding_from_the_blocks() -> None:
    line = LayerCostModel.through({1: 3.0, 2: 5.0, 6: 13.0})  # 1 + 2 k
    assert (line.embed, line.block) == pytest.approx((1, 2))
    assert line.ideal(6, torch.tensor([6, 6]), False) == 1
    assert line.ideal(6, torch.tensor([1, 2]), False) == pytest.approx(13 / 4)
    noisy = LayerCostModel.through({1: 2.0, 2: 5.0, 3: 5.0})  # by hand: slope ((-1)(-2) + 0 + 1) / 2, mean 4
    assert (noisy.block, noisy.embed) == pytest.approx((1.5, 1))


def test_rows_that_leave_before_the_first_layer_take_the_lexical_exit_alone() -> None:
    line = LayerCostModel.through({0: 0.5, 1: 3.5, 2: 5.5, 6: 13.5})  # 0.5, then 1 + 2 k
    assert (line.lexical, line.embed, line.block) == pytest.approx((0.5, 1, 2))
    leaving = torch.tensor([0, 0, 0, 6])
    assert line.ideal(6, leaving, True) == pytest.approx(13 / (0.5 + (1 + 12) / 4))
    assert line.ideal(6, torch.tensor([6, 6]), False) == pytest.approx(1)
    assert LayerCostModel.through({0: 0.5, 6: 12.5}) == LayerCostModel(0.0, 2.0, 0.5)  # one exit behind a layer


def result(**changes: Any) -> Row:
    usual: dict[str, Any] = {
        "batch_size": 1,
        "engine": "onnx",
        "name": "fast",
        "rival": False,
        "score": 0.875,
        "mean_exit": 3.0,
        "p50_ms": 1.0,
        "p99_ms": 2.0,
        "per_second": 500.0,
        "speedup": SpeedupRange(1.5, 1.4, 1.6),
        "ideal": 2.0,
        "efficiency": 0.75,
        "against_best": SpeedupRange(1.25, 1.2, 1.3),
    }
    return Row(**usual | changes)


def benchmark(*results: Row) -> BenchmarkResult:
    own = {"rival": True, "ideal": None, "efficiency": None, "score": 0.9, "against_best": SpeedupRange(1, 1, 1)}
    sizes = dict.fromkeys(row.batch_size for row in results)
    best = [result(batch_size=size, engine="onnx-int8", name="plain onnx-int8", **own) for size in sizes]
    return BenchmarkResult("accuracy", 6, 100, 5, 2, (*best, *results))


SLOW = SpeedupRange(0.7, 0.6, 0.8)
UNSURE = SpeedupRange(1.4, 0.9, 1.5)


def test_the_conclusion_names_the_settings_where_early_exit_pays_and_where_not() -> None:
    outcome = benchmark(
        result(),
        result(batch_size=8, against_best=SLOW),
        result(batch_size=8, name="safe", against_best=UNSURE),
        result(engine="torch", against_best=SLOW),
        result(name="full", engine="torch", against_best=SpeedupRange(3, 3, 3)),
    )
    assert conclusion(outcome) == (
        "Early exit pays here, most at batch size 1 with onnx at the point 'fast': 1.25 (1.20-1.30) times as fast as "
        "the fastest full-depth model, plain onnx-int8, at accuracy 0.8750 against 0.9000; it does not pay with onnx "
        "at batch size 8 (fast, safe), torch."
    )
    assert benchmark_text(outcome).endswith(conclusion(outcome))
    assert "it pays in all settings measured." in conclusion(benchmark(result()))


def test_the_conclusion_says_that_early_exit_does_not_pay() -> None:
    outcome = conclusion(
        benchmark(result(against_best=SLOW), result(batch_size=8, against_best=SpeedupRange(0.5, 0.5, 0.5)))
    )
    assert outcome.startswith(
        "Early exit does not pay here: at its best, at batch size 1 with onnx at the point 'fast'"
    )
    assert "0.70 (0.60-0.80) times as fast" in outcome


def test_without_a_point_the_conclusion_says_how_to_get_one() -> None:
    assert "`offramp calibrate`" in conclusion(benchmark(result(name="full")))


def test_all_rows_leave_at_a_fixed_depth() -> None:
    model = tiny_model(exit_layers=[1, 3, 4])
    for layer in model.layers:
        answers = TorchEngine(model).answer(padded(model, text_rows(5)), fixed_depth_point(layer, model.layers))
        assert answers.exit_layers.tolist() == [layer] * 5


def test_a_comparison_scores_what_was_answered_at_that_batch_size(clock: Clock) -> None:
    model = balanced(tiny_model(pooling="mean"))
    rows, labels = text_rows(20), torch.arange(20) % 3
    trace = record(model, [{**row, "labels": label} for row, label in zip(rows, labels.tolist(), strict=True)])
    point = OperatingPoint({"name": "margin"}, (0.3,) * (LAYERS - 1))
    expected = replay(trace, point.policy, point.thresholds)

    def baseline(inputs: dict[str, Tensor]) -> Tensor:
        clock.work(len(inputs["input_ids"]) * 4.0)
        return plain(model, inputs)

    class Timed(TorchEngine):
        def answer(self, inputs: Any, point: Any) -> Any:
            answers = super().answer(inputs, point)
            clock.work(1.0 * len(answers.logits) + answers.exit_layers.sum().item())  # embed 1, block 1
            return answers

    # names of a baseline, a point and a layer may coincide
    results = run_benchmark(
        {"torch": Timed(model)}, {"torch": {"1": point}}, [Baseline("torch", "full", baseline)], rows, labels, 8, 2
    )
    full_depth, full, early = results
    mean_exit = expected.exit_layers.double().mean().item()
    assert [(row.name, row.rival) for row in results] == [("full", True), ("full", False), ("1", False)]
    assert (full_depth.mean_exit, full.mean_exit, early.mean_exit) == pytest.approx((LAYERS, LAYERS, mean_exit))
    assert early.score == pytest.approx((expected.logits.argmax(dim=-1) == labels).double().mean().item())
    assert full_depth.score == full.score
    assert (full.ideal, full.efficiency) == pytest.approx((1, 4 / (1 + LAYERS)))
    assert early.ideal == pytest.approx((1 + LAYERS) / (1 + mean_exit))
    assert early.speedup.median == pytest.approx(4 / (1 + mean_exit))
    assert early.against_best == early.speedup
    assert early.per_second == pytest.approx(1 / (1 + mean_exit))


def test_the_ideal_of_a_point_that_reads_the_lexical_exit(clock: Clock) -> None:
    model = balanced(tiny_model(pooling="mean", lexical=LexicalExit()))
    rows, layers = text_rows(20), [0, *range(1, LAYERS + 1)]
    score = scores(load_policy("margin"), record(model, rows))[0]
    at_first = float(score.median())
    points = {
        "with": OperatingPoint({"name": "margin"}, (at_first, *[0.3] * (LAYERS - 1)), exit_layers=layers),
        "without": OperatingPoint({"name": "margin"}, (0.3,) * (LAYERS - 1)),
    }

    class Timed(TorchEngine):
        def answer(self, inputs: Any, point: Any) -> Any:
            answers = super().answer(inputs, point)
            behind, reads = int((answers.exit_layers > 0).sum()), point is not points["without"]
            clock.work(0.25 * reads * len(answers.logits) + behind + answers.exit_layers.sum().item())
            return answers

    baseline = Baseline("torch", "plain", lambda inputs: clock.work(1.0))
    _, full, *early = run_benchmark({"torch": Timed(model)}, {"torch": points}, [baseline], rows, None, 8, 1)
    leaving = replay(record(model, rows), points["with"].policy, points["with"].thresholds).exit_layers
    behind, mean_exit = (leaving > 0).double().mean().item(), leaving.double().mean().item()
    assert 0 < behind < 1
    assert full.ideal == pytest.approx(1)
    assert early[0].ideal == pytest.approx((1 + LAYERS) / (0.25 + behind + mean_exit))
    assert early[1].ideal == pytest.approx((1 + LAYERS) / (1 + early[1].mean_exit))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a graph, two points of which the graph runs one, and texts."""
    folder = tmp_path_factory.mktemp("bench")
    model = save_folder(folder / "model", balanced(tiny_model(id2label={0: "x", 1: "y", 2: "z"})))
    margin = OperatingPoint({"name": "margin"}, (0.2,) * (LAYERS - 1))
    save_points({"default": margin, "other": OperatingPoint({"name": "entropy"}, (math.inf,) * (LAYERS - 1))}, model)
    export(model, dataset=text_rows(16))
    baselines.plain_exports(load_model(model), folder)
    lines = [json.dumps({"text": text, "label": "xyz"[number % 3]}) for number, text in enumerate(texts(30))]
    (folder / "data.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "texts.txt").write_text("\n".join(texts(6)) + "\n")
    return folder


@pytest.fixture(autouse=True)
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine without a C++ compiler, and much faster."""

    def missing(*_: Any, **__: Any) -> Any:
        def fail(*_: Any) -> None:
            raise RuntimeError("no compiler here\nand more")

        return fail

    monkeypatch.setattr(torch, "compile", missing)


@pytest.mark.slow
def test_a_folder_is_timed_in_every_engine_at_every_point_that_it_can_run(folders: Path) -> None:
    options = ("--batch-size", "1,4", "--rows", 12, "--rounds", 2, "--json")
    data = json.loads(offramp("bench", folders / "model", "--data", folders / "data.jsonl", *options).stdout)
    assert (data["rows"], data["metric"], data["depth"], data["rounds"]) == (12, "accuracy", LAYERS, 2)
    plains = [f"plain {kind}" for kind in ("torch", "onnx", "onnx, norms fused", "onnx-int8", "onnx-int8, norms fused")]
    for size in (1, 4):
        rows_of_size = [row for row in data["results"] if row["batch_size"] == size]
        assert [row["name"] for row in rows_of_size if row["rival"]] == plains
        assert [(row["engine"], row["name"]) for row in rows_of_size if not row["rival"]] == [
            *(("torch", "full"), ("torch", "default"), ("torch", "other")),
            *(("onnx", "full"), ("onnx", "default")),
        ]
        scores = {row["name"]: row["score"] for row in rows_of_size}
        assert scores["plain torch"] == scores["full"] == scores["plain onnx"] == scores["other"]
        assert {"median": 1, "low": 1, "high": 1} in [row["against_best"] for row in rows_of_size if row["rival"]]
    assert data["verdict"].startswith("Early exit ")


def test_without_labels_nothing_is_scored_and_the_verdict_ends_the_text(
    folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(baselines, "plain_exports", lambda model, folder: {"onnx": folders / "plain-model.onnx"})
    options = ("--batch-size", 4, "--engines", "onnx", "--rounds", 1)
    outcome = offramp("bench", folders / "model", "--data", folders / "texts.txt", *options)
    assert outcome.exit_code == 0, outcome.output
    assert "6 texts" in outcome.stdout
    assert "no labels" in outcome.stdout
    assert outcome.stdout.splitlines()[-1].startswith("Early exit ")
    assert "torch.compile is not among the baselines: no compiler here" in outcome.stderr
    assert "without onnx at 'other'" in outcome.stderr


def test_plain_exports_answer_as_torch(folders: Path) -> None:
    model = load_model(folders / "model")
    runs = {baseline.name: baseline.run for baseline in baselines.exported(model, folders)}
    for rows in (text_rows(1), text_rows(7)):
        batch = padded(model, rows)
        for name in ("plain onnx", "plain onnx, norms fused"):
            torch.testing.assert_close(runs[name](batch), plain(model, batch), rtol=0, atol=1e-4)
        assert (runs["plain onnx-int8"](batch) - plain(model, batch)).abs().max() > 0


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--batch-size", "1,none"), 2, "--batch-size takes numbers of rows"),
        (("--batch-size", "0"), 2, "--batch-size takes numbers of rows"),
        (("--engines", "onyx"), 1, "unknown engine 'onyx'"),
        (("--engines", "onnx-int8"), 1, "no model.int8.onnx"),
        (("--data", "nowhere.csv"), 1, "nowhere.csv"),
    ],
)
def test_a_wrong_option_is_refused_in_a_line(options: tuple[str, ...], code: int, words: str, folders: Path) -> None:
    outcome = offramp("bench", folders / "model", "--data", folders / "texts.txt", *options)
    assert outcome.exit_code == code
    assert words in outcome.stderr.splitlines()[-1]


def test_a_model_of_one_exit_is_refused(folders: Path, tmp_path: Path) -> None:
    folder = save_folder(tmp_path, tiny_model(exit_layers=[LAYERS]))
    assert "nowhere to leave early" in offramp("bench", folder, "--data", folders / "texts.txt").stderr
