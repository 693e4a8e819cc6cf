import json
import math
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from offramp.bench import baselines
from offramp.bench import timer as bench
from offramp.bench.adaptive import to_text_answers
from offramp.bench.baselines import output_at, plain
from offramp.bench.cascade import cascade, equal_threshold
from offramp.bench.compare import BenchmarkResult, compare
from offramp.bench.compare import BenchmarkRow as Row
from offramp.bench.contestant import Contestant, TextAnswers, TextRun
from offramp.bench.in_ctranslate2 import in_ctranslate2
from offramp.bench.in_openvino import in_openvino
from offramp.bench.settings import Ready, candidates, fastest_settings
from offramp.bench.summary import benchmark_text, conclusion, to_json
from offramp.bench.texts import Batch, PlainModel, TextEncoder
from offramp.bench.timer import (
    LayerCostModel,
    SpeedupRange,
    Times,
    median,
    time_batches,
    time_interleaved,
    time_texts,
)
from offramp.data.batching import collate, encode
from offramp.errors import InvalidInput
from offramp.inference.choose_engine import choose_engine
from offramp.inference.export import export
from offramp.inference.torch_engine import TorchEngine
from offramp.model.card import save_points
from offramp.model.lexical.config import LexicalExit
from offramp.types.costs_file import read_costs
from offramp.types.operating_point import OperatingPoint, fixed_depth_point
from support.command_line import offramp
from support.models import LAYERS, balanced, padded, save_folder, text_rows, texts, tiny_model, tiny_tokenizer


class Clock:
    """A clock that only work advances."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        """Between two calls nothing runs, and nothing counts."""

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
    assert line.share(6, leaving) == pytest.approx(13 / 4 / 13)
    assert LayerCostModel.through({0: 0.5, 6: 12.5}) == LayerCostModel(0.0, 2.0, 0.5)  # one exit behind a layer


# --- from text to answer ----------------------------------------------------------------------------------------------


def encoder_for(model: Any) -> TextEncoder:
    return TextEncoder(tiny_tokenizer(), model.config)


def answering(*layers: int, seconds: float, clock: Clock) -> TextRun:
    """A run whose texts leave at these layers in turn, each in so many seconds; every answer is class 1."""

    def run(texts: Any, batch_size: int) -> TextAnswers:
        clock.now += seconds * len(texts)
        exits = torch.tensor([layers[number % len(layers)] for number in range(len(texts))])
        return TextAnswers(torch.tensor([[0.0, 1.0]]).repeat(len(texts), 1), exits)

    return run


def test_a_turn_is_a_request_that_does_not_count_then_all_texts_then_single_requests(clock: Clock) -> None:
    calls: list[int] = []

    def run(texts: Any, batch_size: int) -> TextAnswers:
        calls.append(len(texts))
        return answering(4, seconds=2, clock=clock)(texts, batch_size)

    times, answers = time_texts({"one": run}, texts(5), 2, 2)
    assert calls == [5] + 2 * [2, 5, 2, 2, 1]
    assert times["one"].passes == [10, 10]
    assert times["one"].requests.seconds.tolist() == [[4, 4, 2], [4, 4, 2]]
    assert (times["one"].per_second, times["one"].requests.ms(1.0)) == (0.5, 2000)
    assert answers["one"].exit_layers.tolist() == [4] * 5


def test_threads_and_workers_share_the_cores() -> None:
    assert candidates(1) == [(1, 1)]
    assert candidates(4) == [(4, 1), (2, 2), (1, 4)]


def test_each_contestant_runs_in_its_fastest_setting_and_of_variants_the_fastest(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    def contestant(name: str, seconds: dict[tuple[int, int], float]) -> Contestant:
        def load(threads: int, workers: int) -> TextRun:
            if (threads, workers) not in seconds:
                raise InvalidInput("workers must be 1")
            return answering(4, seconds=seconds[threads, workers], clock=clock)

        return Contestant(name, "full-depth", "any", load)

    caplog.set_level("INFO", "offramp")
    some = [
        contestant("a", {(2, 1): 5, (1, 2): 4}),
        contestant("a, other", {(2, 1): 3, (1, 2): 6}),
        contestant("b", {(2, 1): 9}),
        contestant("c", {}),
    ]
    ready = fastest_settings(some, texts(8), 4, 2)
    chosen = [(one.contestant.name, one.threads, one.workers, one.seconds) for one in ready]
    assert chosen == [("a, other", 2, 1, 24), ("b", 2, 1, 72)]
    assert "without c: workers must be 1" in caplog.text


def test_limits_count_the_tokenizer_and_the_lexical_exit(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_model(num_labels=2).config
    monkeypatch.setattr(TextEncoder, "encode", lambda self, texts: clock.work(1.0 * len(texts)) * 0)
    monkeypatch.setattr(TextEncoder, "batch", lambda self, rows: None)

    def ready(name: str, kind: Any, engine: str, seconds: float, *layers: int) -> Ready:
        run = answering(*layers, seconds=seconds, clock=clock)
        return Ready(Contestant(name, kind, engine, lambda threads, workers: run), 1, 2, run, 0.0)

    some = [
        ready("plain", "full-depth", "onnx", 21, 4),
        ready("best", "full-depth", "other", 10.5, 4),
        ready("full", "full-depth", "onnx", 42, 4),
        ready("lexical", "lexical", "onnx", 3, 0),
        ready("fast", "adaptive", "onnx", 14, 0, 2),
    ]
    labels = torch.tensor([1, 0, 1, 1])
    costs = {"onnx": LayerCostModel(2.0, 4.5, 0.5)}  # 20 at full depth, as the plain model without the tokenizer
    encoder = TextEncoder(tiny_tokenizer(), config)
    rows = compare(some, texts(4), labels, 2, 3, config=config, encoder=encoder, costs=costs)
    by_name = {row.name: row for row in rows}
    fast = by_name["fast"]
    assert (fast.texts_per_second, fast.p50_ms, fast.mean_exit, fast.score) == pytest.approx((1 / 14, 14000, 1, 0.75))
    assert (fast.threads, fast.workers, fast.rival, fast.early) == (1, 2, False, True)
    assert fast.speedup == SpeedupRange(1.5, 1.5, 1.5)
    assert fast.against_best == SpeedupRange(0.75, 0.75, 0.75)
    # half of the texts leave at 0, half after two of four layers: 1 and 4.5 a text on average
    assert fast.ideal == pytest.approx(20 / (0.5 + 1 + 4.5))
    assert fast.efficiency == pytest.approx(1.5 / fast.ideal)
    assert fast.ceiling == pytest.approx(21 / (1 + 2 + 5.5))
    assert fast.share_of_ceiling == pytest.approx(1.5 / fast.ceiling)
    assert by_name["full"].ceiling == pytest.approx(1)
    assert [row.rival for row in rows] == [True, True, False, False, False]
    assert by_name["lexical"].ceiling is by_name["best"].efficiency is None


def test_a_cascade_sends_on_what_the_lexical_exit_is_not_sure_of() -> None:
    model = tiny_model()
    encoder, some = encoder_for(model), texts(9, seed=3)
    batches: list[int] = []

    def plain_model(layer: int, value: float) -> PlainModel:
        def run(batch: Batch) -> Any:
            if layer:
                batches.append(len(batch["input_ids"]))
            return (batch["input_ids"][:, 1:2] * value).astype("float32")

        return PlainModel("any", "full-depth", "any", layer, lambda threads, workers: run)

    first = torch.tensor([encoder.encode([text])[0]["input_ids"][1] for text in some])
    threshold = float(first.float().median())
    contestant = cascade(
        "c", plain_model(0, 1.0), plain_model(4, 100.0), lambda logits: logits[:, 0], threshold, encoder
    )
    expected = torch.where(first < threshold, 100 * first, first)
    for workers in (1, 3):
        answers = contestant.load(1, workers)(some, 2)
        assert answers.exit_layers.tolist() == [4 if one < threshold else 0 for one in first.tolist()]
        assert answers.logits[:, 0].tolist() == expected.tolist()
    assert max(batches) == 2


def test_a_cascade_is_the_loosest_that_is_right_often_enough() -> None:
    certainty = torch.tensor([0.9, 0.5, 0.7, 0.3])
    lexical, full = torch.tensor([1, 0, 1, 1]), torch.tensor([1, 1, 0, 0])
    # the surest 1, 2, 3, 4 texts answered before the encoder: right 2, 3, 2 and 3 of 4
    assert equal_threshold(certainty, lexical, full, 0.75) == pytest.approx(0.3)
    assert equal_threshold(certainty[:3], lexical[:3], full[:3], 1.0) == pytest.approx(0.6)
    assert equal_threshold(certainty, 0 * lexical, full, 0.5) == math.inf


def test_a_predictors_answers_become_logits_with_the_same_answer() -> None:
    answers = [{"label": "y", "score": 0.4, "exit_layer": 0}, {"error": "blank"}]
    single = to_text_answers(answers, tiny_model(id2label={0: "x", 1: "y"}).config)
    assert single.logits[0].tolist() == [0, 1]
    assert single.logits[1].isnan().all()
    assert single.exit_layers.tolist() == [0, LAYERS]
    several = tiny_model(id2label={0: "x", 1: "y"}, problem_type="multi_label_classification").config
    assert to_text_answers([{"labels": ["x"], "exit_layer": 1}], several).logits.tolist() == [[1, -1]]
    values = tiny_model(num_labels=1).config
    assert to_text_answers([{"value": 0.25, "exit_layer": 1}], values).logits.tolist() == [[0.25]]


# --- the conclusion ---------------------------------------------------------------------------------------------------


def result(**changes: Any) -> Row:
    usual: dict[str, Any] = {
        "batch_size": 1,
        "engine": "onnx",
        "name": "fast",
        "kind": "adaptive",
        "rival": False,
        "threads": 1,
        "workers": 2,
        "score": 0.875,
        "mean_exit": 3.0,
        "p50_ms": 1.0,
        "p99_ms": 2.0,
        "texts_per_second": 500.0,
        "speedup": SpeedupRange(1.5, 1.4, 1.6),
        "ideal": 2.0,
        "efficiency": 0.75,
        "ceiling": 1.8,
        "share_of_ceiling": 0.8,
        "against_best": SpeedupRange(1.25, 1.2, 1.3),
    }
    return Row(**usual | changes)


def benchmark(*results: Row) -> BenchmarkResult:
    own = {
        "kind": "full-depth",
        "rival": True,
        "ideal": None,
        "efficiency": None,
        "score": 0.9,
        "against_best": SpeedupRange(1, 1, 1),
    }
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
        result(name="full", engine="torch", kind="full-depth", texts_per_second=10.0),
    )
    assert conclusion(outcome) == (
        "Early exit pays here, most at batch size 1 with onnx at the point 'fast': 1.25 (1.20-1.30) times as fast as "
        "the fastest full-depth model, plain onnx-int8, at accuracy 0.8750 against 0.9000; it does not pay with onnx "
        "at batch size 8 (fast, safe), torch."
    )
    assert benchmark_text(outcome).endswith(conclusion(outcome))
    data = to_json(outcome)
    assert (data["verdict"], data["results"][0]["per_second"]) == (conclusion(outcome), 500)
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
    assert "`offramp calibrate`" in conclusion(benchmark(result(name="full", kind="full-depth")))


def test_the_conclusion_names_what_beats_early_exit_at_its_own_score() -> None:
    cascade_row = result(kind="cascade", name="cascade as right as 'fast'", texts_per_second=600.0)
    worse = result(kind="cut", name="cut at layer 1", score=0.5, texts_per_second=5000.0)
    outcome = conclusion(benchmark(result(), cascade_row, worse))
    assert outcome.endswith(
        "; at the same score cascade as right as 'fast' is 1.20 times as fast as 'fast' at batch size 1."
    )
    slower = result(kind="cascade", name="cascade as right as 'fast'", texts_per_second=400.0)
    assert "cascade" not in conclusion(benchmark(result(), slower, worse))


# --- folders ----------------------------------------------------------------------------------------------------------


def test_all_rows_leave_at_a_fixed_depth() -> None:
    model = tiny_model(exit_layers=[1, 3, 4])
    for layer in model.layers:
        answers = TorchEngine(model).answer(padded(model, text_rows(5)), fixed_depth_point(layer, model.layers))
        assert answers.exit_layers.tolist() == [layer] * 5


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a graph, two points of which the graph runs one, and texts."""
    folder = tmp_path_factory.mktemp("bench")
    exits = {"id2label": {0: "x", 1: "y", 2: "z"}, "pooling": "mean", "lexical": LexicalExit()}
    model = save_folder(folder / "model", balanced(tiny_model(**exits)))
    margin = OperatingPoint({"name": "margin"}, (0.2,) * LAYERS, exit_layers=[*range(LAYERS + 1)])
    save_points({"default": margin, "other": OperatingPoint({"name": "entropy"}, (math.inf,) * LAYERS)}, model)
    export(model, dataset=text_rows(16))
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
def test_a_folder_is_raced_in_every_engine_at_every_point_that_it_can_run(folders: Path) -> None:
    options = ("--batch-size", "4", "--rows", 12, "--rounds", 1, "--json")
    outcome = offramp("bench", folders / "model", "--data", folders / "data.jsonl", *options)
    assert outcome.exit_code == 0, outcome.output
    data = json.loads(outcome.stdout)
    assert (data["rows"], data["metric"], data["depth"], data["rounds"]) == (12, "accuracy", LAYERS, 1)
    by_kind: dict[str, list[str]] = {}
    for row in data["results"]:
        by_kind.setdefault(row["kind"], []).append(f"{row['engine']}: {row['name']}".partition(", ")[0])
    own = {"torch: full", "onnx: full", "torch: plain torch", "onnx: plain onnx", "onnx-int8: plain dynamic int8"}
    assert own <= {*by_kind["full-depth"]}
    assert by_kind["adaptive"] == ["torch: default", "torch: other", "onnx: default"]
    assert [name.partition(": ")[2] for name in by_kind["cut"]] == [f"cut at layer {k}" for k in range(1, LAYERS)]
    assert len(by_kind["cascade"]) == 2
    assert by_kind["lexical"] == ["onnx: lexical"]
    scores = {(row["engine"], row["name"].partition(", ")[0]): row["score"] for row in data["results"]}
    assert scores["torch", "plain torch"] == scores["torch", "full"] == scores["onnx", "plain onnx"]
    assert scores["onnx", "full"] == scores["torch", "other"]
    assert {"median": 1, "low": 1, "high": 1} in [row["against_best"] for row in data["results"]]
    assert {"threads", "workers", "texts_per_second", "per_second", "ceiling", "share_of_ceiling"} <= {
        *data["results"][0]
    }
    assert data["verdict"].startswith("Early exit ")
    assert "torch.compile is not among the contestants: no compiler here" in outcome.stderr
    assert "without onnx at 'other'" in outcome.stderr


def test_without_labels_nothing_is_scored_and_the_verdict_ends_the_text(
    folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("offramp.bench.plain_models.missing", lambda: "nothing can be exported")
    monkeypatch.setattr(baselines, "missing", lambda: "nothing can be exported")
    options = ("--batch-size", 4, "--engines", "onnx", "--rounds", 1)
    outcome = offramp("bench", folders / "model", "--data", folders / "texts.txt", *options)
    assert outcome.exit_code == 0, outcome.output
    assert "6 texts" in outcome.stdout
    assert "no labels" in outcome.stdout
    assert outcome.stdout.splitlines()[-1].startswith("Early exit ")
    assert "nothing can be exported" in outcome.stderr
    (table,) = read_costs(folders / "model") or ()
    assert (table.engine, table.batch_size, table.threads, table.workers) == ("onnx-float32", 4, 1, 1)
    chosen = choose_engine(folders / "model", None, batch_size=4)
    assert (chosen.engine, chosen.reason.partition(",")[0]) == ("onnx", "the fastest measured here for batches of 4")


def test_exported_models_answer_as_torch_at_each_layer() -> None:
    model = balanced(tiny_model(lexical=LexicalExit(), pooling="mean"))
    encoder, some = encoder_for(model), texts(7)
    all_runtimes = baselines.in_onnx_runtime(baselines.export_exits(model), model, encoder.encode(some))
    runtimes = {runtime.name: runtime for runtime in all_runtimes}
    expected = model.all_exits(padded(model, text_rows(7))).logits  # (L, B, C)
    for name in ("plain onnx", "plain onnx, norms fused"):
        models = [*baselines.cuts(runtimes[name], range(1, LAYERS + 1)), runtimes[name].at(LAYERS)]
        for layer, one in enumerate((baselines.lexical_alone(model), *models)):
            answers = one.contestant(encoder).load(1, 2)(some, 3)
            torch.testing.assert_close(answers.logits, expected[layer], rtol=0, atol=1e-4)
            assert answers.exit_layers.tolist() == [layer] * 7
    for name in ("plain dynamic int8", "plain exact int8"):
        quantized = runtimes[name].load(output_at(LAYERS), 1, 1)(encoder.batch(encoder.encode(some)))
        assert 0 < (torch.from_numpy(quantized) - plain(model, padded(model, text_rows(7)))).abs().max() < 1


def test_openvino_and_ctranslate2_answer_as_torch(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    pytest.importorskip("ctranslate2")
    model = balanced(tiny_model(pooling="mean"))
    given = list(zip(texts(6), texts(6, seed=5), strict=True))
    encoder = TextEncoder(tiny_tokenizer(), model.config)
    expected = plain(model, collate(encode(encoder.tokenizer, given, 32), 0))
    with mock.patch(
        "offramp.bench.in_openvino.find_spec", lambda name: None if name == "nncf" else name
    ):  # which takes seconds
        float32, *bf16 = in_openvino(baselines.export_exits(model), tmp_path, [])
    others = [runtime.at(LAYERS) for runtime in bf16] + in_ctranslate2(model, encoder.tokenizer, tmp_path)
    for one, tolerance in ((float32.at(LAYERS), 1e-5), *((other, 0.1) for other in others)):
        logits = one.contestant(encoder).load(1, 2)(given, 4).logits
        torch.testing.assert_close(logits, expected, rtol=0, atol=tolerance)
    assert others[-1].engine == "ctranslate2"


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
