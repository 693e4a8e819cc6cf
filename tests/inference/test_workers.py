"""Workers: batches at the same time, answers in the order of the texts."""

import pickle
import threading
from pathlib import Path
from typing import Any

import pytest

from offramp.errors import InvalidInput
from offramp.inference import workers
from offramp.inference.predictor import Predictor
from offramp.inference.record import record
from offramp.inference.torch_engine import TorchEngine
from offramp.inference.workers import WorkerPool, cores, shared
from support.models import text_rows, texts, tiny_model, tiny_tokenizer

COUNT = 30


class Together:
    """Torch by another name, which answers no batch before another one is there, and remembers their rows."""

    name = "fake-float32"

    def __init__(self, workers: int) -> None:
        self.eager = TorchEngine(tiny_model())
        self.config, self.layers = self.eager.config, self.eager.layers
        self.barrier = threading.Barrier(workers, timeout=20)
        self.rows: list[int] = []

    def check(self, point: Any) -> None:
        self.eager.check(point)

    def _wait(self, inputs: Any) -> None:
        self.barrier.wait()
        self.rows.append(len(inputs["input_ids"]))

    def answer(self, inputs: Any, point: Any) -> Any:
        self._wait(inputs)
        return self.eager.answer(inputs, point)

    def all_exits(self, inputs: Any) -> Any:
        self._wait(inputs)
        return self.eager.all_exits(inputs)


def same(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert one == pytest.approx(other, abs=1e-4)


@pytest.mark.parametrize(("workers", "batch_size"), [(2, 32), (2, 5), (3, 10), (3, 4)])
def test_workers_answer_at_the_same_time_in_the_order_of_the_texts(workers: int, batch_size: int) -> None:
    engine = Together(workers)
    predictor = Predictor(engine, tiny_tokenizer(), None, workers)
    alone = Predictor(engine.eager, tiny_tokenizer())(texts(COUNT))
    same(predictor(texts(COUNT), batch_size=batch_size), alone)
    assert sum(engine.rows) == COUNT
    assert len(engine.rows) % workers == 0  # no round of batches leaves a worker without one
    same(list(predictor.stream(iter(texts(COUNT)), batch_size=batch_size)), alone) if batch_size == 32 else None


def test_a_trace_is_recorded_by_workers() -> None:
    engine = Together(2)
    trace, expected = record(engine, text_rows(COUNT), workers=2), record(engine.eager, text_rows(COUNT))
    assert (trace.logits - expected.logits).abs().max() < 1e-5
    assert len(engine.rows) == 2


def test_a_text_on_which_the_engine_fails_leaves_the_others_theirs() -> None:
    class Failing(Together):
        def answer(self, inputs: Any, point: Any) -> Any:
            if (inputs["input_ids"] == bad).any():
                raise RuntimeError("in the kernel")
            return self.eager.answer(inputs, point)

    tokenizer, engine = tiny_tokenizer(), Failing(2)
    bad = tokenizer.convert_tokens_to_ids("bad")
    given = ["the cat", "bad", "", "a dog", "a tree", "the mat"]
    answers = Predictor(engine, tokenizer, None, 2)(given)
    same([answers[number] for number in (0, 3, 4, 5)], Predictor(engine.eager, tokenizer)([given[0], *given[3:]]))
    assert answers[1:3] == [{"error": "RuntimeError: in the kernel"}, {"error": "the text is blank"}]


def test_an_error_ends_the_other_workers() -> None:
    begun: list[int] = []
    both = threading.Barrier(2, timeout=20)

    def run(item: int) -> int:
        begun.append(item)
        if item < 2:
            both.wait()
        if item == 1:
            raise MemoryError
        return item

    with pytest.raises(MemoryError):
        WorkerPool(2).map(run, range(100_000))
    assert len(begun) < 100_000


def test_a_pool_starts_again_in_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    pool, names = WorkerPool(2), set[threading.Thread]()
    both = threading.Barrier(2, timeout=20)

    def run(item: int) -> int:
        both.wait()
        names.add(threading.current_thread())
        return -item

    assert pool.map(run, range(4)) == [0, -1, -2, -3]
    before = set(names)
    assert pool.map(run, range(2)) == [0, -1]
    assert names == before
    assert pickle.loads(pickle.dumps(pool)).map(run, [1, 2]) == [-1, -2]
    monkeypatch.setattr("os.getpid", lambda: -1)  # as in a forked process, where the threads are not
    names.clear()
    pool.map(run, [1, 2])
    assert names & before == {threading.current_thread()}
    assert len(names) == 2


@pytest.mark.parametrize(
    ("batches", "lengths", "workers", "expected"),
    [
        ([[0, 1, 2, 3]], [9, 4, 4, 1], 1, [[0, 1, 2, 3]]),
        ([[0, 1, 2, 3]], [9, 4, 4, 1], 2, [[0, 1], [2, 3]]),  # 10 of 22 with what counts for a row, then 5, 5, 2
        ([[0, 1, 2, 3]], [99, 1, 1, 1], 2, [[0], [1, 2, 3]]),
        ([[0, 1, 2]], [5, 5, 5], 4, [[0, 1, 2]]),
        ([[0, 1], [2, 3], [4, 5, 6, 7]], [3] * 8, 2, [[0, 1], [2, 3], [4, 5], [6, 7]]),
        ([[0, 1], [2, 3]], [3] * 4, 2, [[0, 1], [2, 3]]),
        ([[0, 1, 2, 3]], [0] * 4, 2, [[0, 1], [2, 3]]),  # images
        ([], [], 2, []),
    ],
)
def test_the_last_batches_are_divided_by_their_tokens(
    batches: list[list[int]], lengths: list[int], workers: int, expected: list[list[int]]
) -> None:
    assert shared(batches, lengths, workers) == expected


@pytest.mark.parametrize(("variable", "expected"), [("3", 3), ("4,2", 4), ("", 2), ("many", 2), ("0", 2)])
def test_cores_are_the_environments_or_those_that_the_process_may_use(
    variable: str, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", variable)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {5, 7}, raising=False)
    assert cores() == expected


@pytest.mark.parametrize("workers", [0, -1, 1.5, True])
def test_less_than_one_worker_is_refused(workers: Any) -> None:
    with pytest.raises(InvalidInput, match=f"workers must be at least 1, got {workers}"):
        Predictor(Together(1), tiny_tokenizer(), None, workers)


def test_torch_has_one_worker() -> None:
    with pytest.raises(InvalidInput, match="torch answers one batch at a time; workers=2 needs an exported graph"):
        record(tiny_model(), text_rows(3), workers=2)


@pytest.mark.parametrize(
    ("content", "count"), [("max 100000", 64), ("200000 100000", 2), ("150000 100000", 2), ("50000 100000", 1)]
)
def test_a_container_has_as_many_processes_as_its_share_of_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, count: int
) -> None:
    (tmp_path / "own").write_text("1:cpu:/other\n0::/pod/a\n")
    (tmp_path / "pod" / "a").mkdir(parents=True)
    (tmp_path / "pod" / "a" / "cpu.max").write_text(content + "\n")
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(64)), raising=False)
    monkeypatch.setattr(workers, "_OWN_GROUP", tmp_path / "own")
    monkeypatch.setattr(workers, "_GROUPS", tmp_path)
    assert cores() == count
