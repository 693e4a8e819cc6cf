"""Windows of a stream: answers come when the source pauses, and none is lost when it fails."""

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator

import pytest

from offramp.errors import InvalidInput
from offramp.inference.predictor import Predictor
from offramp.inference.stream import full_windows, live_windows
from offramp.inference.torch_engine import TorchEngine
from support.models import tiny_model, tiny_tokenizer

Windows = Callable[[Iterable[int], int], Iterator[list[int]]]
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


def test_full_windows_are_full() -> None:
    assert list(full_windows(range(7), 3)) == [[0, 1, 2], [3, 4, 5], [6]]
    assert list(full_windows([], 3)) == []


def test_live_windows_lose_nothing_and_keep_the_order() -> None:
    windows = list(live_windows(iter(range(2500)), 1000))
    assert [item for window in windows for item in window] == list(range(2500))
    assert all(1 <= len(window) <= 1000 for window in windows)
    assert list(live_windows(iter([]), 3)) == []


@pytest.mark.parametrize("windows", [full_windows, live_windows])
def test_an_error_of_the_source_comes_after_what_it_gave(windows: Windows) -> None:
    def source() -> Iterator[int]:
        yield from range(5)
        raise OSError("the disk is gone")

    taken: list[int] = []
    with pytest.raises(OSError, match="the disk is gone"):
        taken.extend(item for window in windows(source(), 3) for item in window)
    assert taken == list(range(5))


def test_texts_are_answered_when_the_source_pauses(predictor: Predictor) -> None:
    source: queue.Queue[object] = queue.Queue()
    answers = predictor.stream(items_of(source))
    delays = []
    for text in ("the cat", "a dog", "the mat"):
        source.put(text)
        began = time.perf_counter()
        assert next(answers) == predictor([text])[0]
        delays.append(time.perf_counter() - began)
    source.put(END)
    assert list(answers) == []
    assert min(delays) < 0.5  # 0.01 and the model; other processes may hold the machine up


def test_texts_that_come_slowly_do_not_wait_for_each_other() -> None:
    taken = threading.Event()

    def source() -> Iterator[int]:
        while not taken.wait(0.004):  # never as long as a window lingers
            yield 0

    windows = live_windows(source(), 1024)
    assert len(next(windows)) < 500
    taken.set()
    list(windows)


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
    monkeypatch.setattr("offramp.inference.predictor.WINDOW", 2)
    for texts in (["the cat", "a dog", "the mat", 7], iter(["the cat", "a dog", "the mat", 7])):
        answers = predictor.stream(texts)  # type: ignore[arg-type]
        assert len([next(answers) for _ in range(3)]) == 3
        with pytest.raises(InvalidInput, match="item 3 must be a text or a pair of texts, got 7"):
            next(answers)
