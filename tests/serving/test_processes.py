"""Real processes that run a tiny graph in int8: what they answer, and what becomes of requests when they are killed."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from offramp.data.padding import padded
from offramp.errors import InvalidInput, OfframpError
from offramp.inference.answer_rows import RowPlan, answer_rows
from offramp.inference.onnx_engine import OnnxEngine
from offramp.inference.predictor import Predictor
from offramp.serving.frames import (
    AnswersFrame,
    ArrayFrame,
    BatchFrame,
    FaultFrame,
    ReadyFrame,
    StartFrame,
    pack,
    unpack,
)
from offramp.serving.request import Options, Request, RowResult
from offramp.serving.running import Running
from offramp.serving.served import Limits
from offramp.serving.service import Service
from offramp.serving.settings import ModelSettings, ServerSettings
from offramp.serving.setup import open_service
from offramp.serving.worker import Worker
from offramp.types.operating_point import Certificate, OperatingPoint, read_points, write_points
from support.graphs import DEFAULT, copied
from support.models import WORDS, texts

EASY = OperatingPoint({"name": "entropy"}, (0.5, 0.5, 0.5))
LIMITS = Limits(timeout_s=20.0, drain_s=0.3, max_client_batch_size=64)


class Nothing:
    """Counts nothing."""

    def row_left(self, layer: int, point: str) -> None: ...
    def row_failed(self, kind: str) -> None: ...
    def batch_done(self, rows: int, tokens: int, seconds: float) -> None: ...
    def rows_retried(self, rows: int) -> None: ...


@pytest.fixture(scope="module")
def folder(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The exported folder with two points."""
    folder = copied(exported, tmp_path_factory.mktemp("served") / "model")
    points = read_points(folder / "operating_points.json")
    write_points(
        points | {"easy": replace(points["default"], thresholds=EASY.thresholds)}, folder / "operating_points.json"
    )
    return folder


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()


Play = Callable[[Coroutine[Any, Any, Any]], Any]


@pytest.fixture(scope="module")
def play(loop: asyncio.AbstractEventLoop) -> Play:
    """Run a story to its end."""
    return lambda story: loop.run_until_complete(asyncio.wait_for(story, 60))


@pytest.fixture(scope="module")
def service(folder: Path, play: Play) -> Iterator[Service]:
    """Two processes, for all tests here; each leaves two behind."""
    model = ModelSettings(os.fspath(folder), engine="onnx-int8", workers=2, threads=1)
    service: Service = play(open_service(ServerSettings(model, LIMITS), Nothing()))
    yield service
    play(service.close())


async def answered(service: Service, *items: Any, **options: Any) -> list[RowResult]:
    running = await service.start(Request(items, Options(**options)))
    await running.finished
    return running.rows()


async def both_alive(service: Service) -> None:
    while service.pool.alive < 2:
        await asyncio.sleep(0.02)


def stop(service: Service) -> list[int]:
    """Let no process run until it is killed or continues."""
    for pid in service.pool.pids:
        os.kill(pid, signal.SIGSTOP)
    return service.pool.pids


async def sent(service: Service, *items: Any, **options: Any) -> Running:
    """Start a request and let its rows go to a process."""
    running = await service.start(Request(items, Options(**options)))
    while len(service.queue) and service.pool.idle:
        await asyncio.sleep(0)
    return running


def busy_pid(service: Service) -> int:
    """The process that has a batch, of which there is one."""
    (process,) = [process for process in service.pool._all if process not in service.pool.idle]
    return process.pid


def test_it_is_ready_with_what_the_folder_has(service: Service) -> None:
    served = service.served
    assert (served.name, served.engine, served.layers_read) == ("model", "onnx-int8", (1, 2, 3, 4))
    assert (list(served.points), served.default_point, served.max_tokens) == (["default", "easy"], "default", 32)
    assert (service.pool.alive, len(service.pool.idle), service.pool.restarts) == (2, 2, 0)
    assert len(served.digest) == 64


def test_answers_are_the_predictors_to_the_last_bit_whatever_else_is_in_flight(
    service: Service, folder: Path, play: Play
) -> None:
    """200 requests at once: points, depths, lengths, details, one row or several."""
    random_ = random.Random(1)
    long = [" ".join(random_.choices(WORDS, k=random_.randint(20, 60))) for _ in range(40)]
    pool = [*texts(150, seed=3), *long, *zip(texts(30, seed=8), texts(30, seed=9), strict=True)]
    requests = [
        Request(
            tuple(random_.sample(pool, random_.choice([1, 1, 1, 2, 5]))),
            Options(
                random_.choice([None, "easy", "full"]), random_.choice([None, None, 1, 2, 3]), random_.random() < 0.4
            ),
        )
        for _ in range(200)
    ]

    async def story() -> list[list[RowResult]]:
        running = [await service.start(request) for request in requests]
        await asyncio.gather(*(one.finished for one in running))
        return [one.rows() for one in running]

    predictor = Predictor.load(folder, "onnx-int8", None)
    left = set()
    for request, rows in zip(requests, play(story()), strict=True):
        assert_as_alone(predictor, service, request, rows)
        left |= {row.exit_layer for row in rows}
    assert left == {1, 2, 3, 4}


def assert_as_alone(predictor: Predictor, service: Service, request: Request, rows: list[RowResult]) -> None:
    engine, options = predictor.engine, request.options
    assert isinstance(engine, OnnxEngine)
    point = service.served.point(service.served.point_name(options))
    for item, row in zip(request.items, rows, strict=True):
        tokens, _ = service._tokenizer.encode([item], options)  # the same as the predictor's, see test_tokens.py
        batch = padded([tokens[0]], engine.config.pad_token_id)
        assert row.error is None
        if options.max_depth is None:
            logits, layers, _ = engine.answer_arrays(batch, point)
            alone = replace(predictor, point=point)([item], top_k=None)[0]
            assert alone["exit_layer"] == row.exit_layer
        else:
            found = answer_rows(engine, batch, [RowPlan(point, options.max_depth)])
            logits, layers = found.logits, found.exit_layers
            assert row.exit_layer <= options.max_depth
        assert np.array_equal(row.logits, logits[0])
        assert (row.exit_layer, row.tokens) == (layers[0], len(tokens[0]["input_ids"]))
        assert list(row.logits_by_exit) == (list(range(1, row.exit_layer + 1)) if options.details else [])
        if options.details and options.operating_point == "full":
            assert np.array_equal(row.logits_by_exit[row.exit_layer], row.logits)


def test_a_process_killed_in_the_middle_costs_a_second_try_and_no_answer(service: Service, play: Play) -> None:
    async def story() -> None:
        expected = await answered(service, *texts(6))
        restarts, pids = service.pool.restarts, stop(service)
        running = await sent(service, *texts(6))  # three rows for each process
        os.kill(pids[0], signal.SIGKILL)
        os.kill(pids[1], signal.SIGCONT)
        await running.finished
        for row, wanted in zip(running.rows(), expected, strict=True):
            assert row.error is None
            assert np.array_equal(row.logits, wanted.logits)
        await both_alive(service)
        assert service.pool.restarts == restarts + 1
        assert pids[0] not in service.pool.pids

    play(story())


def test_a_row_that_ends_two_processes_is_unavailable_and_its_mates_are_not(service: Service, play: Play) -> None:
    async def story() -> None:
        pids = stop(service)
        poison = await sent(service, "the cat")
        first = busy_pid(service)
        second = await sent(service, "a dog")  # the other process has it
        os.kill(first, signal.SIGKILL)
        await asyncio.sleep(0.05)
        (other,) = set(pids) - {first}
        os.kill(other, signal.SIGCONT)
        await second.finished
        assert second.rows()[0].error is None
        while not (poison.finished.done() or service.pool.alive == 2):
            await asyncio.sleep(0.02)
        assert poison.rows()[0].error is None  # the second try was answered
        await both_alive(service)

        stop(service)
        poison = await sent(service, "the cat")
        os.kill(busy_pid(service), signal.SIGKILL)
        await asyncio.sleep(0.05)  # the other one has it now
        os.kill(busy_pid(service), signal.SIGKILL)
        await poison.finished
        error = poison.rows()[0].error
        assert error is not None
        assert (error.kind, error.retry_after_s) == ("unavailable", 1.0)
        await both_alive(service)
        assert (await answered(service, "the cat"))[0].error is None

    play(story())


@pytest.mark.slow
def test_in_torch_several_batches_go_on_together_and_a_killed_process_costs_no_answer(folder: Path, play: Play) -> None:
    """Requests at points and depths of their own, with details; the process is killed with four of them in flight."""

    async def story() -> None:
        model = ModelSettings(os.fspath(folder), engine="torch", workers=1, threads=1, operating_point="easy")
        service = await open_service(ServerSettings(model, LIMITS), Nothing())
        options = [
            Options(),
            Options("default"),
            Options("full", details=True),
            Options(max_depth=2),
            Options("full", 1),
        ]
        requests = [Request([text], options[index % 4]) for index, text in enumerate(texts(20))]
        alone = []
        for request in requests:
            alone += await answered(service, *request.items, **vars(request.options))
        for kill in (False, True):
            stop(service)
            runnings = []
            for request in requests:
                runnings.append(await service.start(request))
                await asyncio.sleep(0.01)
            (process,) = service.pool._all
            assert (process.rows, len(service.queue)) == (4, 16)  # the others can still be cancelled
            os.kill(process.pid, signal.SIGKILL if kill else signal.SIGCONT)
            await asyncio.gather(*(running.finished for running in runnings))
            for running, expected in zip(runnings, alone, strict=True):
                (row,) = running.rows()
                assert (row.error, row.exit_layer, list(row.logits_by_exit)) == (
                    None,
                    expected.exit_layer,
                    list(expected.logits_by_exit),
                )
                assert np.allclose(row.logits, expected.logits, atol=1e-4)
            assert service.pool.restarts == kill
        assert len({row.exit_layer for row in alone}) > 1
        await service.close()

    play(story())


def test_processes_that_end_without_a_batch_are_missed_at_once_and_cost_nobody_a_try(
    service: Service, play: Play
) -> None:
    async def story() -> None:
        for pid in service.pool.pids:
            os.kill(pid, signal.SIGKILL)
        while service.pool.alive:
            await asyncio.sleep(0.005)
        assert service.pool.idle == []
        rows = await answered(service, *texts(3))  # once a process is there again
        assert [row.error for row in rows] == [None] * 3
        await both_alive(service)

    play(story())


def test_a_process_that_writes_no_message_is_replaced(service: Service, play: Play) -> None:
    async def story() -> None:
        restarts = service.pool.restarts
        process = service.pool.idle[0]
        process._reader.feed_data(b"\x00\x00\x00\x01\xc1")  # c1 is no msgpack
        while service.pool.restarts == restarts:
            await asyncio.sleep(0.01)
        assert process.pid not in service.pool.pids
        await both_alive(service)

    play(story())


def test_a_stuck_process_holds_no_drain_and_a_changed_folder_gets_no_process(
    folder: Path, tmp_path: Path, play: Play, caplog: pytest.LogCaptureFixture
) -> None:
    """With a service of one process of its own."""
    other = copied(folder, tmp_path / "changed")
    model = ModelSettings(os.fspath(other), engine="onnx-int8", workers=1, threads=1)

    async def story() -> None:
        service = await open_service(ServerSettings(model, LIMITS), Nothing())
        points = read_points(other / "operating_points.json")
        write_points(
            points | {"default": replace(points["default"], thresholds=(0.5,) * 3)}, other / "operating_points.json"
        )
        with caplog.at_level(logging.ERROR, "offramp.serving"):
            (pid,) = service.pool.pids
            os.kill(pid, signal.SIGKILL)
            while not caplog.records:
                await asyncio.sleep(0.02)
        assert "the model has changed since the server was started" in caplog.messages[0]
        write_points(points, other / "operating_points.json")
        rows = await answered(service, "the cat")
        assert rows[0].error is None

        (pid,) = stop(service)
        stuck = await sent(service, "the cat", "a dog")
        assert await service.drain() == 2
        assert [str(row.error) for row in stuck.rows()] == ["the server is shutting down"] * 2
        await asyncio.wait_for(service.close(), 2)
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)

    play(story())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"engine": "openvino"}, "no openvino/model.xml; `offramp export"),
        ({"operating_point": "fast"}, "fast"),
    ],
    ids=["no such graph", "no such point"],
)
def test_a_model_that_cannot_be_loaded_is_one_line(
    changes: dict[str, Any], message: str, folder: Path, play: Play
) -> None:
    settings = replace(ModelSettings(os.fspath(folder), workers=1, threads=1), **changes)
    with pytest.raises(OfframpError, match=message) as caught:
        play(open_service(ServerSettings(settings, LIMITS), Nothing()))
    assert "\n" not in str(caught.value)


# --- a worker without a process of its own ------------------------------------------------------------------


def start_frame(folder: Path, point: str | None = "default", allow: bool = False) -> StartFrame:
    return StartFrame(os.fspath(folder), "onnx-int8", 1, point, allow, 1000, None)


def batch_of(*plans: tuple[str, int | None]) -> BatchFrame:
    ids = np.arange(len(plans))[:, None] + np.array([[2, 7, 9]])
    return BatchFrame({"input_ids": ArrayFrame.of(ids)}, list(plans), False)


def test_a_row_that_the_engine_fails_on_is_the_only_one_without_an_answer(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Worker.load(start_frame(folder))
    plans = [("default", None), ("full", 2), ("easy", None), ("full", None), ("default", 1)]
    expected = worker.answer(batch_of(*plans))
    own = OnnxEngine.run

    def run(self: OnnxEngine, inputs: Any, limits: Any) -> Any:
        if 5 in inputs["input_ids"][:, 0]:
            raise RuntimeError("it broke\nat a place")
        return own(self, inputs, limits)

    monkeypatch.setattr(OnnxEngine, "run", run)
    found = worker.answer(batch_of(*plans))
    assert found.errors == {3: "RuntimeError: it broke at a place"}
    stay = [0, 1, 2, 4]
    assert np.array_equal(found.logits.array()[stay], expected.logits.array()[stay])
    assert [found.exit_layers[row] for row in stay] == [expected.exit_layers[row] for row in stay]
    assert found.exit_layers[3] == -1

    def refuse(self: OnnxEngine, inputs: Any, limits: Any) -> Any:
        if 5 in inputs["input_ids"][:, 0]:
            raise InvalidInput("no such thing")
        return own(self, inputs, limits)

    monkeypatch.setattr(OnnxEngine, "run", refuse)
    assert worker.answer(batch_of(*plans)).errors == {3: "ValueError: no such thing"}


def test_a_point_with_a_certificate_for_another_engine_is_not_there(folder: Path, tmp_path: Path) -> None:
    other = copied(folder, tmp_path / "model")
    points = read_points(other / "operating_points.json")
    fields = {
        "risk": "agreement",
        "level": 0.01,
        "delta": 0.05,
        "bound": 0.01,
        "observed": 0.0,
        "rows": 10,
        "data": "rows",
    }
    for engine in ("onnx-int8", "torch-float32"):
        certificate = Certificate(**fields, method="upper", engine=engine)  # type: ignore[arg-type]
        points[f"certified with {engine}"] = replace(points["default"], certificate=certificate)
    write_points(points, other / "operating_points.json")
    assert list(Worker.load(start_frame(other)).points) == ["default", "easy", "certified with onnx-int8"]
    assert list(Worker.load(start_frame(other, allow=True)).points) == list(points)
    with pytest.raises(InvalidInput, match="certificate holds for torch-float32, not for onnx-int8"):
        Worker.load(start_frame(other, "certified with torch-float32"))


FRAMES = [
    StartFrame("folder", "onnx", None, None, True, 16384, 7),
    BatchFrame({"input_ids": ArrayFrame.of(np.arange(6).reshape(2, 3))}, [("full", None), ("a point", 3)], True),
    AnswersFrame(
        ArrayFrame.of(np.array([[1.5, np.nan]], np.float32)),
        [-1],
        [True],
        {0: "a fault"},
        ArrayFrame.of(np.zeros((1, 0, 2), np.float32)),
        (0, 12),
        0.25,
    ),
    ReadyFrame("onnx-int8", (0, 3), ["default"], 32, 1, "digest", 1.0),
    FaultFrame("one line"),
]


@pytest.mark.parametrize("frame", FRAMES, ids=lambda frame: type(frame).__name__)
def test_a_message_comes_out_as_it_went_in(frame: Any) -> None:
    content = pack(frame)
    assert int.from_bytes(content[:4], "big") == len(content) - 4
    again = unpack(content[4:])
    assert again == frame
    if isinstance(frame, BatchFrame) and isinstance(again, BatchFrame):
        ids = again.inputs["input_ids"].array()
        assert ids.tolist() == [[0, 1, 2], [3, 4, 5]]
        assert not ids.flags.writeable


def test_the_default_point_of_the_fixture_is_what_it_was(folder: Path) -> None:
    assert read_points(folder / "operating_points.json")["default"].thresholds == DEFAULT.thresholds
