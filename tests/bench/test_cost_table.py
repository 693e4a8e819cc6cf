"""Cost tables on a clock that only work moves."""

import json
from pathlib import Path
from typing import Any

import pytest

from offramp.bench import timer as bench
from offramp.bench.cost_table import TIMED, measure_costs
from offramp.errors import InvalidInput
from offramp.inference.torch_engine import TorchEngine
from offramp.model.lexical.config import LexicalExit
from offramp.types.costs_file import read_costs
from offramp.types.operating_point import POINTS_FILE, read_points
from offramp.types.outputs import Answers, ExitOutput
from support.command_line import offramp
from support.models import LAYERS, balanced, image_rows, save_folder, text_rows, texts, tiny_model, token_rows


class Clock:
    """Tells a time that only work moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        """Between two calls nothing runs, and nothing counts."""


class Timed:
    """An engine that takes so many seconds a row at each exit, and remembers its batches."""

    def __init__(self, clock: Clock, seconds: dict[int, float], model: Any = None) -> None:
        self.clock, self.seconds = clock, seconds
        self.eager = TorchEngine(model or tiny_model(exit_layers=list(seconds)))
        self.name, self.config, self.layers = "fake-float32", self.eager.config, self.eager.layers
        self.batches: list[tuple[int, int]] = []
        self.policies: set[str] = set()

    def check(self, point: Any) -> None:
        self.eager.check(point)

    def all_exits(self, inputs: Any) -> ExitOutput:
        return self.eager.all_exits(inputs)

    def answer(self, inputs: Any, point: Any) -> Answers:
        self.policies.add(point.policy["name"])
        answers = self.eager.answer(inputs, point)
        self.batches.append((len(answers.logits), int(answers.exit_layers[0])))
        self.clock.now += sum(self.seconds[layer] for layer in answers.exit_layers.tolist())
        return answers


class Priced(Timed):
    """Takes 3 ms to embed, 10 ms a layer, 2 ms to read an exit, and 0.5 ms a row that goes on where others leave."""

    def answer(self, inputs: Any, point: Any) -> Answers:
        answers = self.eager.answer(inputs, point)
        leaving = answers.exit_layers.tolist()
        for layer in leaving:
            read = [other for other in point.exit_layers if other <= layer]
            self.clock.now += 0.002 * len(read) + (0.003 + 0.010 * layer if layer else 0)
        for layer in point.exit_layers[:-1]:
            stay = sum(other > layer for other in leaving)
            self.clock.now += 0.0005 * stay * (layer in leaving and stay > 0)
        return answers


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(bench, "time", clock)
    return clock


def test_every_exit_is_timed_itself(clock: Clock) -> None:
    table = measure_costs(Timed(clock, {1: 0.002, 3: 0.003, 4: 0.01}), token_rows(10), batch_size=4)
    assert table.layers == (1, 3, 4)
    assert table.ms == pytest.approx((2, 3, 10))
    assert (table.engine, table.batch_size) == ("fake-float32", 4)
    # a line by least squares through (1, 2), (3, 3), (4, 10): slope 32.5 / 14, at 0 negative
    assert table.embed_ms == 0


def test_the_lexical_exit_is_timed_and_takes_no_part_of_the_embedding(clock: Clock) -> None:
    model = tiny_model(exit_layers=[1, 3, 4], lexical=LexicalExit())
    table = measure_costs(Timed(clock, {0: 0.0005, 1: 0.0035, 3: 0.0075, 4: 0.0095}, model), token_rows(3))
    assert table.layers == (0, 1, 3, 4)
    assert table.ms == pytest.approx((0.5, 3.5, 7.5, 9.5))  # 0.5, then 1 + 2 k more
    assert table.embed_ms == pytest.approx(1)


def test_the_embedding_is_where_a_line_through_the_exits_begins(clock: Clock) -> None:
    table = measure_costs(Timed(clock, {k: 0.5 + 2 * k for k in (1, 2, 3, 4)}), token_rows(3))
    assert table.ms == pytest.approx((2500, 4500, 6500, 8500))
    assert table.embed_ms == pytest.approx(500)
    assert table.batch_size == 1


def test_an_exit_that_a_graphs_policy_does_not_read_takes_as_long_as_the_next(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("offramp.bench.cost_table.leave_layers", lambda engine: (1, 4))
    monkeypatch.setattr("offramp.bench.cost_table.reading", lambda engine, layers: None)
    model = tiny_model(exit_layers=[1, 3, 4], lexical=LexicalExit())
    table = measure_costs(Timed(clock, {1: 0.003, 4: 0.009}, model), token_rows(3))
    assert (table.layers, table.ms) == ((0, 1, 3, 4), pytest.approx((3, 3, 9, 9)))
    assert table.embed_ms == 0


@pytest.mark.parametrize(("batch_size", "cut"), [(1, 0.0), (4, 0.5)])
@pytest.mark.parametrize("lexical", [False, True])
def test_exits_and_cuts_have_prices(lexical: bool, batch_size: int, cut: float, clock: Clock) -> None:
    model = balanced(tiny_model(exit_layers=[1, 3, 4], lexical=LexicalExit() if lexical else None))
    engine = Priced(clock, dict.fromkeys(model.layers, 0.0), model)
    table = measure_costs(engine, text_rows(8), batch_size=batch_size, rounds=2)
    first = (2.0,) if lexical else ()
    assert table.ms == pytest.approx((*first, *(2 * lexical + ms for ms in (15, 37, 49))))
    assert table.exit_ms == pytest.approx((*first, 2, 2))
    assert table.cut_ms == pytest.approx((cut,) * len(table.exit_ms))
    assert table.select((3, 4)).ms == pytest.approx((35, 47))


def test_an_engine_that_reads_all_its_exits_has_no_prices(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("offramp.bench.exit_prices.reading", lambda engine, layers: None)
    table = measure_costs(Priced(clock, {1: 0.0, 3: 0.0, 4: 0.0}), token_rows(3))
    assert (table.exit_ms, table.cut_ms) == (None, None)
    assert table.select((3, 4)).ms == table.ms[1:]


def test_a_deeper_exit_that_seems_faster_counts_as_slow_as_the_one_before(clock: Clock) -> None:
    table = measure_costs(Timed(clock, {1: 0.002, 2: 0.005, 3: 0.004, 4: 0.006}), token_rows(3))
    assert table.ms == pytest.approx((2, 5, 5, 6))


def test_many_rows_are_thinned_evenly_over_their_lengths(clock: Clock) -> None:
    rows = [{"input_ids": [6] * (1 + number % 8)} for number in range(4 * TIMED)]
    engine = Timed(clock, {2: 1, 4: 2})
    table = measure_costs(engine, rows, rounds=1)
    assert table.tokens == 4.5
    # two exits, and the last one alone; a round that does not count, and a round
    assert len(engine.batches) == 3 * (TIMED + TIMED)
    engine.batches.clear()
    assert measure_costs(engine, rows, batch_size=20, rounds=1).tokens == pytest.approx(4.5, abs=0.2)
    assert [size for size, layer in engine.batches if layer == 2][:4] == [20, 20, 20, 20]


def test_a_batch_is_no_larger_than_there_are_rows(clock: Clock) -> None:
    assert measure_costs(Timed(clock, {2: 1, 4: 2}), token_rows(3), batch_size=32).batch_size == 3


@pytest.mark.parametrize(("outputs", "policy"), [(3, "margin"), (1, "stability")])
def test_exits_are_scored_on_the_way_as_usual(outputs: int, policy: str, clock: Clock) -> None:
    model = tiny_model(num_labels=outputs)
    engine = Timed(clock, {layer: float(layer) for layer in model.layers}, model)
    assert measure_costs(engine, token_rows(3)).ms == pytest.approx((1000, 2000, 3000, 4000))
    assert engine.policies == {policy}


def test_images_have_no_tokens(clock: Clock) -> None:
    model = tiny_model("vit")
    table = measure_costs(Timed(clock, dict.fromkeys(model.layers, 1.0), model), image_rows(3))
    assert table.tokens is None


def test_a_model_in_memory_is_timed_on_token_rows() -> None:
    table = measure_costs(tiny_model(), text_rows(4), rounds=1)
    assert len(table.ms) == LAYERS
    assert table.engine == "torch-float32"
    assert "cores" in table.machine


@pytest.mark.parametrize(
    ("given", "options", "said"),
    [
        ([], {}, "timing takes rows"),
        (["a text"], {"batch_size": 0}, "timing takes rows"),
        (["a text"], {"rounds": 0}, "timing takes rows"),
        (["a text"], {}, "texts need a tokenizer"),
        (["a text"], {"engine": "onnx"}, "what was exported to a folder"),
    ],
)
def test_what_cannot_be_timed_is_said(given: list[Any], options: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        measure_costs(tiny_model(), given, **options)


def test_a_model_of_one_exit_is_refused() -> None:
    with pytest.raises(InvalidInput, match="nowhere to leave early"):
        measure_costs(tiny_model(exit_layers=[LAYERS]), token_rows(2))


# --- on the command line ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("timing")
    save_folder(folder / "model", balanced(tiny_model(id2label={0: "x", 1: "y", 2: "z"})))
    lines = [json.dumps({"text": text, "label": "xyz"[number % 3]}) for number, text in enumerate(texts(12))]
    (folder / "data.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def test_a_latency_is_measured_and_met_on_the_command_line(place: Path) -> None:
    data = ("--data", place / "data.jsonl", "--batch-size", 3)
    outcome = offramp("calibrate", place / "model", *data, "--latency-ms", 1000, "--name", "quick")
    assert outcome.exit_code == 0, outcome.output
    assert "timed: torch-float32, batch size 3" in outcome.stderr
    assert "ms a sample that leaves after layer 1: " in outcome.stderr
    assert "ms a sample" in outcome.stdout
    (table,) = read_costs(place / "model") or ()
    assert (table.engine, table.batch_size, table.threads, table.workers) == ("torch-float32", 3, 1, 1)
    assert f"costs         {table.describe()}: " in offramp("info", place / "model").stdout
    point = read_points(place / "model" / POINTS_FILE)["quick"]
    assert point.target == {"latency_ms": 1000}
    assert 0 < point.measured.expected_ms < 1000
    assert point.measured.mean_exit == LAYERS  # the strictest that is fast enough
    assert "ms a sample expected (torch-float32, batch size 3, " in offramp("info", place / "model").stdout
    told = offramp("calibrate", place / "model", *data, "--max-drop", 0.5, "--json").stdout
    default = json.loads(told)["points"]["default"]
    assert default["measured"]["expected_ms"] > 0  # a batch size is enough to choose exits by their times
    assert [value["layer"] for value in default["exit_values"]] == default["exit_layers"][:-1]
    assert "saves: what a row would take more" in offramp("evaluate", place / "model", *data[:2]).stdout


def test_a_latency_out_of_reach_names_the_best_and_saves_nothing(place: Path) -> None:
    options = ("--data", place / "data.jsonl", "--latency-ms", 1e-6, "--name", "too quick")
    outcome = offramp("calibrate", place / "model", *options)
    assert outcome.exit_code == 1
    assert "cannot answer in 1e-06 ms a sample here; the best is " in outcome.stderr
    assert "too quick" not in read_points(place / "model" / POINTS_FILE)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--trace", "trace.st", "--latency-ms", 5), "times the texts of --data"),
        (("--trace", "trace.st", "--speedup", 2, "--batch-size", 8), "--batch-size times the texts of --data"),
        (("--data", "data.jsonl", "--speedup", 2, "--latency-ms", 5), "exactly one of"),
        (("--data", "data.jsonl", "--latency-ms", 5, "--confidence", 0.9), "--confidence goes with"),
        (("--data", "data.jsonl", "--latency-ms", 0), "--latency-ms"),
    ],
)
def test_options_that_do_not_go_together_are_wrong_usage(options: tuple[Any, ...], said: str, place: Path) -> None:
    outcome = offramp("calibrate", place / "model", *options)
    assert outcome.exit_code == 2
    assert said in " ".join(outcome.stderr.replace("│", " ").split())
