import math
import pickle
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from offramp.errors import InvalidInput, NotApplicable, OfframpError, UnknownName
from offramp.inference.answers import to_answers
from offramp.inference.flight import LeftRows
from offramp.inference.predictor import Predictor
from offramp.inference.record import record
from offramp.inference.torch_engine import TorchEngine
from offramp.model.modeling import MultiExitModel
from offramp.model.points import load_points
from offramp.policies.confidence import Entropy
from offramp.policies.replay import replay, scores
from offramp.types.operating_point import POINTS_FILE, OperatingPoint, write_points
from offramp.types.outputs import Answers, ExitOutput
from offramp.types.problem_types import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from support.models import (
    LAYERS,
    SPECIAL,
    WORDS,
    balanced,
    encoder_config,
    save_folder,
    text_rows,
    texts,
    tiny_model,
    tiny_tokenizer,
)

NAMES = {0: "bad", 1: "fine", 2: "good"}
COUNT = 40


def at_layer(layer: int) -> OperatingPoint:
    return OperatingPoint({"name": "fixed"}, (float(layer),) * (LAYERS - 1))


def predictor_of(model: MultiExitModel, point: OperatingPoint | None = None) -> Predictor:
    return Predictor(TorchEngine(model.cpu().eval()), tiny_tokenizer(), point)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with the points "default", at which some leave early, and "first"."""
    path = save_folder(
        tmp_path_factory.mktemp("model"), balanced(tiny_model(id2label=NAMES, pooling="mean", head="shared_pooler"))
    )
    seen = scores(Entropy(), record(path, text_rows(COUNT)))[:-1].unique()
    threshold = seen[len(seen) // 2 : len(seen) // 2 + 2].mean().item()
    points = {"default": OperatingPoint({"name": "entropy"}, (threshold,) * 3), "first": at_layer(1)}
    write_points(points, path / POINTS_FILE)
    return path


@pytest.fixture(scope="module")
def predictor(folder: Path) -> Predictor:
    return Predictor.load(folder)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model without operating points."""
    return save_folder(tmp_path_factory.mktemp("plain"), tiny_model())


# What comes out.


def test_answers_are_those_of_the_replayed_trace_in_input_order(folder: Path, predictor: Predictor) -> None:
    trace = record(folder, text_rows(COUNT))
    expected = replay(trace, predictor.point.policy, predictor.point.thresholds)
    probabilities, classes = expected.logits.softmax(dim=-1).max(dim=-1)

    answers = predictor(texts(COUNT), batch_size=7)

    assert [answer["exit_layer"] for answer in answers] == expected.exit_layers.tolist()
    assert [answer["label"] for answer in answers] == [NAMES[number] for number in classes.tolist()]
    assert [answer["score"] for answer in answers] == pytest.approx(probabilities.tolist(), abs=1e-4)
    assert all(list(answer) == ["label", "score", "exit_layer"] for answer in answers)
    assert len({answer["label"] for answer in answers}) > 1
    assert len({answer["exit_layer"] for answer in answers}) > 1


def same_answers(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> bool:
    return all(
        one["label"] == other["label"]
        and one["exit_layer"] == other["exit_layer"]
        and one["score"] == pytest.approx(other["score"], abs=1e-4)
        for one, other in zip(found, expected, strict=True)
    )


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_the_batch_size_does_not_change_an_answer(predictor: Predictor, batch_size: int) -> None:
    assert same_answers(predictor(texts(COUNT), batch_size=batch_size), predictor(texts(COUNT), batch_size=16))


def test_texts_and_pairs_may_be_mixed(predictor: Predictor) -> None:
    mixed = ["the cat sat", ("a dog", "the mat was good"), "fine", ["very", "bad"], ("not good", "but not awful")]
    assert same_answers(predictor(mixed), [predictor([each])[0] for each in mixed])
    one, other = predictor([("a dog", "the mat"), ("the mat", "a dog")])
    assert one != other


def test_no_texts_no_answers(predictor: Predictor) -> None:
    assert predictor([]) == []


def test_a_text_longer_than_the_model_reads_is_cut(predictor: Predictor) -> None:
    start = " ".join(["cat"] * 30)  # 32 tokens with [CLS] and [SEP]
    assert same_answers(predictor([start + " dog" * 500]), predictor([start]))


def test_a_regression_answers_with_a_value() -> None:
    model = tiny_model(num_labels=1)
    logits = record(model, text_rows(3)).logits[-1].squeeze(-1).tolist()
    answers = predictor_of(model)(texts(3))
    assert [list(answer) for answer in answers] == [["value", "exit_layer"]] * 3
    assert [answer["value"] for answer in answers] == pytest.approx(logits, abs=1e-4)


def test_a_regression_of_several_outputs_answers_with_a_list() -> None:
    model = tiny_model(num_labels=2, problem_type=REGRESSION)
    logits = record(model, text_rows(1)).logits[-1, 0].tolist()
    (answer,) = predictor_of(model)(texts(1))
    assert answer["value"] == pytest.approx(logits, abs=1e-4)


def test_several_labels_answer_with_those_above_one_half() -> None:
    model = tiny_model(id2label=NAMES, problem_type=MULTI_LABEL)
    with torch.no_grad():
        for classifier in model.heads.classifiers:
            classifier.weight.zero_()
            classifier.bias.copy_(torch.tensor([2.0, -0.1, 0.1]))
    assert predictor_of(model)(["the cat"]) == [{"labels": ["bad", "good"], "exit_layer": LAYERS}]
    model.heads.classifiers[-1].bias.data.fill_(-1.0)
    assert predictor_of(model)(["the cat"]) == [{"labels": [], "exit_layer": LAYERS}]


def test_several_labels_answer_with_those_above_the_points_label_thresholds() -> None:
    model = tiny_model(id2label=NAMES, problem_type=MULTI_LABEL)
    with torch.no_grad():
        for classifier in model.heads.classifiers:
            classifier.weight.zero_()
            classifier.bias.copy_(torch.tensor([2.0, -0.1, 0.1]))  # probabilities 0.88, 0.475, 0.525
    point = OperatingPoint({"name": "entropy"}, (math.inf,) * 3, label_thresholds=(0.9, 0.4, 0.53))
    (answer,) = predictor_of(model, point)(["the cat"], top_k=None)
    assert answer["labels"] == ["fine"]
    assert answer["scores"] == pytest.approx({"bad": 0.8808, "good": 0.5250, "fine": 0.4750}, abs=1e-4)
    with pytest.raises(InvalidInput, match="2 label thresholds for a model with 3 outputs"):
        predictor_of(model, replace(point, label_thresholds=(0.9, 0.4)))(["the cat"])


@pytest.mark.parametrize("point", [None, at_layer(3)])
def test_nan_is_an_error_and_no_answer(point: OperatingPoint | None) -> None:
    model = tiny_model(num_labels=3)
    word = len(SPECIAL) + WORDS.index("awful")
    with torch.no_grad():
        model.backbone.get_input_embeddings().weight[word] = torch.nan
    good, bad, fine = predictor_of(model, point)(["the cat", "an awful cat", "a dog"])
    assert bad == {"error": "the model's logits are not finite", "exit_layer": 1}
    assert set(good) == set(fine) == {"label", "score", "exit_layer"}
    assert good["exit_layer"] == fine["exit_layer"] == (LAYERS if point is None else 3)


@pytest.mark.parametrize("problem", [SINGLE_LABEL, MULTI_LABEL])
def test_scores_are_every_labels_probability_the_largest_first(problem: str) -> None:
    model = tiny_model(id2label=NAMES, problem_type=problem)
    with torch.no_grad():
        for classifier in model.heads.classifiers:
            classifier.weight.zero_()
            classifier.bias.copy_(torch.tensor([-0.5, 0.0, 2.0]))
    exps = {"bad": math.exp(-0.5), "fine": 1.0, "good": math.exp(2.0)}
    if problem == SINGLE_LABEL:
        expected = {name: value / sum(exps.values()) for name, value in exps.items()}
    else:
        expected = {name: value / (1 + value) for name, value in exps.items()}
    predictor = predictor_of(model)

    (answer,) = predictor(["the cat"], top_k=None)

    assert list(answer["scores"]) == ["good", "fine", "bad"]
    assert answer["scores"] == pytest.approx(expected, abs=1e-6)
    assert {**answer, "scores": 0} == {**predictor(["the cat"])[0], "scores": 0}
    (two,) = predictor.stream(["the cat"], top_k=2)
    assert list(two["scores"]) == ["good", "fine"]
    assert predictor([""], top_k=None) == [{"error": "the text is blank"}]


def test_scores_are_refused_where_there_are_none(predictor: Predictor) -> None:
    with pytest.raises(NotApplicable, match="a regression answers with values"):
        predictor_of(tiny_model(num_labels=1))(["the cat"], top_k=None)
    for wrong in (-1, True, 1.5, "all"):
        with pytest.raises(InvalidInput, match="top_k must be a number of labels, or None for all"):
            predictor(["the cat"], top_k=wrong)  # type: ignore[arg-type]


# Where it leaves.


def test_the_default_point_is_used_if_there_is_one(folder: Path) -> None:
    predictor = Predictor.load(folder)
    assert predictor.point == load_points(folder)["default"]


def test_without_a_default_point_every_text_goes_all_the_way(plain: Path) -> None:
    predictor = Predictor.load(plain)
    assert predictor.point is None
    assert {answer["exit_layer"] for answer in predictor(texts(5))} == {LAYERS}


@pytest.mark.parametrize(("point", "layer"), [("first", 1), (at_layer(3), 3), (None, LAYERS)])
def test_a_point_may_be_a_name_a_point_or_none(folder: Path, point: Any, layer: int) -> None:
    predictor = Predictor.load(folder, operating_point=point)
    assert {answer["exit_layer"] for answer in predictor(texts(5))} == {layer}


def test_full_depth_is_the_last_layer_where_exits_are_few() -> None:
    predictor = predictor_of(tiny_model(exit_layers=[2, 4]))
    assert {answer["exit_layer"] for answer in predictor(texts(5))} == {4}


@pytest.mark.parametrize("engine", ["auto", "torch"])
def test_engines_that_there_are(folder: Path, engine: str) -> None:
    assert len(Predictor.load(folder, engine)(texts(2))) == 2


# Processes and threads.


def test_a_pickled_predictor_answers_the_same_with_its_threads(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    predictor = Predictor.load(folder, threads=3)
    predictor(texts(1))  # its workers are not pickled
    copy = pickle.loads(pickle.dumps(predictor))
    assert threads == [3, 3]
    assert copy.point == predictor.point
    assert copy(texts(5)) == predictor(texts(5))
    Predictor.load(folder)
    assert threads == [3, 3]


@pytest.mark.parametrize("number", [0, -1, 1.5, True])
@pytest.mark.parametrize("name", ["threads", "workers", "batch_size"])
def test_less_than_one_thread_or_row_is_refused(folder: Path, name: str, number: Any) -> None:
    with pytest.raises(InvalidInput, match=f"{name} must be at least 1, got {number}"):
        Predictor.load(folder, **{name: number})


@pytest.mark.parametrize("problem_type", [SINGLE_LABEL, MULTI_LABEL])
def test_probabilities_do_not_depend_on_the_row_of_the_batch(problem_type: str) -> None:
    config = tiny_model(id2label=NAMES, problem_type=problem_type).config
    logits = np.random.default_rng(0).normal(scale=3, size=(129, 3)).astype(np.float32)

    def answered(start: int, end: int) -> list[dict[str, Any]]:
        rows = np.arange(start, end)
        return to_answers(LeftRows(rows, logits[rows], np.full(len(rows), LAYERS), rows < 0), config, None, None)

    alone = [answer for row in range(129) for answer in answered(row, row + 1)]
    assert [answered(start, 129) for start in (0, 1, 6)] == [alone[start:] for start in (0, 1, 6)]


# What is refused.


def test_an_unknown_point_or_engine_is_refused_with_those_there_are(folder: Path) -> None:
    with pytest.raises(UnknownName, match="no operating point 'slow'; there are: default, first"):
        Predictor.load(folder, operating_point="slow")
    with pytest.raises(UnknownName, match="unknown engine 'onxx'; known: auto, torch"):
        Predictor.load(folder, engine="onxx")


def test_a_folder_without_a_model_with_exits_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no model can be loaded from there"):
        Predictor.load(tmp_path)
    encoder_config().save_pretrained(tmp_path)
    with pytest.raises(InvalidInput, match="without exits"):
        Predictor.load(tmp_path)


def test_one_text_instead_of_a_list_is_refused(predictor: Predictor) -> None:
    with pytest.raises(InvalidInput, match="takes a list of texts"):
        predictor("the cat sat")


@pytest.mark.parametrize("size", [0, -1, 2.5, "8"])
def test_a_batch_size_below_one_is_refused(predictor: Predictor, size: Any) -> None:
    with pytest.raises(InvalidInput, match="batch_size must be a number of at least 1"):
        predictor(["the cat"], batch_size=size)


@pytest.mark.parametrize(
    "item", [None, 3, 1.5, b"bytes", ("one",), ("a", "b", "c"), ("a", None), {"text": "a", "label": "b"}]
)
def test_what_is_no_text_is_refused_with_its_number(predictor: Predictor, item: Any) -> None:
    with pytest.raises(InvalidInput, match="item 1 must be a text or a pair of texts, got"):
        predictor(["the cat", item])


# A stream.


def test_a_stream_answers_in_order(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("offramp.inference.pipeline.WINDOW", 9)
    assert same_answers(list(predictor.stream(iter(texts(COUNT)), batch_size=4)), predictor(texts(COUNT)))


@pytest.mark.parametrize("ask", [Predictor.__call__, lambda *asked: list(Predictor.stream(*asked))])
def test_one_text_is_not_taken_for_its_letters(predictor: Predictor, ask: Callable[..., object]) -> None:
    with pytest.raises(InvalidInput, match="takes a list of texts"):
        ask(predictor, "the cat")


def test_texts_may_come_from_a_generator(predictor: Predictor) -> None:
    assert same_answers(predictor(text for text in texts(COUNT)), predictor(texts(COUNT)))


def test_a_stream_reads_no_more_than_there_is_room_for(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("offramp.inference.predictor.WINDOW", 5)
    monkeypatch.setattr("offramp.inference.pipeline.WINDOW", 5)
    monkeypatch.setattr("offramp.inference.pipeline.MOST_TOKENS", 20)  # 5 texts of 4 tokens
    read = []

    def endless() -> Iterator[str]:
        while True:
            read.append("the cat")
            yield "the cat"

    answers = predictor.stream(endless(), batch_size=2)
    assert read == []
    next(answers)
    time.sleep(0.02)
    assert len(read) <= 20  # in flight, tokenized, and those ahead
    for _ in range(20):
        next(answers)
    time.sleep(0.02)
    assert 20 <= len(read) <= 40
    answers.close()  # type: ignore[attr-defined]


def test_texts_that_are_cut_are_counted_once_a_call(predictor: Predictor, caplog: pytest.LogCaptureFixture) -> None:
    long = "the cat " * 40
    predictor([long, "a dog"])
    assert caplog.messages == ["1 of 2 texts was cut to 32 tokens"]
    caplog.clear()
    assert len(list(predictor.stream([long] * 1500))) == 1500
    assert caplog.messages == ["1500 of 1500 texts were cut to 32 tokens"]


@dataclass(frozen=True)
class OneRowLess:
    """An engine of a user, which loses the last row of each batch."""

    engine: TorchEngine
    name: str = "mine"
    layers: tuple[int, ...] = (1, 2, 3, 4)

    @property
    def config(self) -> Any:
        return self.engine.config

    def check(self, point: OperatingPoint | None) -> None:
        """Any point will do."""

    def answer(self, inputs: dict[str, torch.Tensor], point: OperatingPoint | None) -> Answers:
        return self.engine.answer({name: value[:-1] for name, value in inputs.items()}, point)

    def all_exits(self, inputs: dict[str, torch.Tensor]) -> ExitOutput:
        raise NotImplementedError


@pytest.mark.parametrize("count", [3, 40])  # in this thread, and in a pipeline
def test_an_engine_that_answers_fewer_rows_than_it_was_given_is_named(predictor: Predictor, count: int) -> None:
    broken = replace(predictor, engine=OneRowLess(predictor.engine), batch_size=8)
    rows = min(count, 8)
    message = f"the engine 'mine' was given {rows} rows and answered {rows - 1} logits, {rows - 1} exit layers, "
    with pytest.raises(OfframpError, match=message):
        broken(texts(count))
