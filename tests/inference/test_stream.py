"""Streams: answers come when the source pauses, and none is lost when it fails."""

import queue
import threading
import time
from collections.abc import Iterator

import pytest

from offramp.errors import InvalidInput
from offramp.inference.predictor import Predictor
from offramp.inference.stream import LiveSource, SteadySource
from offramp.inference.torch_engine import TorchEngine
from support.models import tiny_model, tiny_tokenizer

END = object()


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor(TorchEngine(tiny_model()), tiny_tokenizer())


def items_of(source: "queue.Queue[object]") -> Iterator[object]:
    while (item := source.get()) is not END:
        yield item


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "offramp-reader"]


@pytest.fixture(autouse=True)
def no_thread_stays() -> Iterator[None]:
    yield
    for thread in readers():
        thread.join(5)
    assert readers() == []


def test_a_steady_source_gives_what_is_asked_for_and_ends_with_less() -> None:
    source = SteadySource(range(7))
    assert [(source.take(3), source.ended) for _ in range(3)] == [([0, 1, 2], False), ([3, 4, 5], False), ([6], True)]


def test_fewer_long_texts_are_read_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("offramp.inference.stream.MOST_CHARACTERS", 10)
    texts = ["12345", ("123", "45"), "1", "2", "123456789012", "3"]
    source = SteadySource(texts)
    assert [(source.take(3), source.ended) for _ in range(4)] == [
        (texts[:2], False),
        (texts[2:5], False),
        (texts[5:], True),
        ([], True),
    ]
    live = LiveSource(iter(texts), 1000)
    live.open(lambda: None)
    parts: list[object] = []
    while not live.ended:
        time.sleep(0.05)
        ahead = live.take(1000)
        assert len(ahead) <= 3
        parts += ahead
    assert parts == texts


def taken(source: LiveSource[int], size: int) -> Iterator[list[int]]:
    changed = threading.Event()
    source.open(changed.set)
    while not source.ended:
        assert changed.wait(5)
        changed.clear()
        while items := source.take(size):
            yield items


def test_a_live_source_loses_nothing_and_keeps_the_order() -> None:
    parts = list(taken(LiveSource(iter(range(2500)), 1000), 700))
    assert [item for part in parts for item in part] == list(range(2500))
    assert all(1 <= len(part) <= 700 for part in parts)
    assert list(taken(LiveSource(iter([]), 3), 3)) == []


@pytest.mark.parametrize("live", [False, True])
def test_an_error_of_the_source_comes_after_the_answers_before_it(live: bool, predictor: Predictor) -> None:
    def source() -> Iterator[str]:
        yield from ("the cat", "a dog", "the mat")
        raise OSError("the disk is gone")

    answers: list[object] = []
    one = LiveSource(source(), 2) if live else SteadySource(source())
    with pytest.raises(OSError, match="the disk is gone"):
        answers.extend(predictor.answer_source(one, 2, 0))
    assert sum(map(len, answers)) == 3  # type: ignore[arg-type]


def test_texts_are_answered_when_the_source_pauses(predictor: Predictor) -> None:
    source: queue.Queue[object] = queue.Queue()
    answers = predictor.stream(items_of(source))
    delays = []
    for text in ("the cat", "a dog", "the mat"):
        source.put(text)
        began = time.perf_counter()
        answer = next(answers)
        delays.append(time.perf_counter() - began)
        assert answer == predictor([text])[0]
    source.put(END)
    assert list(answers) == []
    assert min(delays) < 0.1  # 0.01 and the model; other processes may hold the machine up


def test_a_closed_stream_lets_its_thread_end(predictor: Predictor) -> None:
    source: queue.Queue[object] = queue.Queue()
    answers = predictor.stream(items_of(source))
    source.put("the cat")
    next(answers)
    answers.close()  # type: ignore[attr-defined]
    source.put("a dog")  # the thread waits for this, and ends


def test_an_item_that_is_no_text_comes_after_the_answers_before_it(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("offramp.inference.pipeline.WINDOW", 2)
    for texts in (["the cat", "a dog", "the mat", 7], iter(["the cat", "a dog", "the mat", 7])):
        answers = predictor.stream(texts)  # type: ignore[arg-type]
        assert len([next(answers) for _ in range(3)]) == 3
        with pytest.raises(InvalidInput, match="item 3 must be a text or a pair of texts, got 7"):
            next(answers)
