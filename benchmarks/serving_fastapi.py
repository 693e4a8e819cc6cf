"""A server that `serving_race.py` compares with: FastAPI on uvicorn, around a full-depth model.

    python benchmarks/serving_fastapi.py --port 8000 --folder MODEL --export FILES --model "exact int8" --workers 2

It takes {"inputs": TEXT} at /predict and answers as text-embeddings-inference does. It writes the bytes of the answer
itself, which is faster than FastAPI's encoder. Requests that wait while the model is busy may make a batch.
"""

from __future__ import annotations

import argparse
import asyncio
import os
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import uvicorn
from fastapi import FastAPI, Request, Response

from serving_engines import FullDepth, add_model_options

SETTINGS = "OFFRAMP_RACE_SETTINGS"
"""Environment variable with the options, for uvicorn's processes."""


class Batches:
    """Batches of the requests that wait: a free thread takes up to so many of them at once."""

    def __init__(self, model: FullDepth, most: int, workers: int) -> None:
        self._model, self._most, self._free = model, most, workers
        self._waiting: deque[tuple[dict[str, list[int]], asyncio.Future[Any]]] = deque()
        self._pool = ThreadPoolExecutor(workers)

    async def answer(self, text: str) -> Any:
        """Return the probabilities of a text."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        self._waiting.append((self._model.tokens(text), future))
        loop.call_soon(self._dispatch)
        return await future

    def _dispatch(self) -> None:
        while self._free and self._waiting:
            self._free -= 1
            batch = [self._waiting.popleft() for _ in range(min(self._most, len(self._waiting)))]
            loop = asyncio.get_running_loop()
            running = loop.run_in_executor(self._pool, self._model.probabilities, [row for row, _ in batch])
            running.add_done_callback(lambda done, batch=batch: self._finish(done, batch))

    def _finish(self, done: asyncio.Future[Any], batch: Sequence[tuple[Any, asyncio.Future[Any]]]) -> None:
        self._free += 1
        for (_, future), shares in zip(batch, done.result(), strict=True):
            if not future.cancelled():
                future.set_result(shares)
        self._dispatch()


def app() -> FastAPI:
    """Return FastAPI's application, with the settings of the environment."""
    options = msgspec.json.decode(os.environ[SETTINGS])
    model = FullDepth(options["folder"], options["export"], options["model"], options["threads"])
    batches = Batches(model, options["batch"], options["workers"]) if options["workers"] else None
    encoder, server = msgspec.json.Encoder(), FastAPI()

    @server.get("/health")
    async def health() -> Response:
        return Response()

    @server.post("/predict")
    async def predict(request: Request) -> Response:
        text = msgspec.json.decode(await request.body())["inputs"]
        shares = model.probabilities([model.tokens(text)])[0] if batches is None else await batches.answer(text)
        return Response(encoder.encode(model.ranked(shares)), media_type="application/json")

    return server


def main() -> None:
    """Serve as the options say, until the process is ended."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_options(parser)
    parser.add_argument("--workers", type=int, default=0, help="batches at once; 0: in the request's own task")
    parser.add_argument("--batch", type=int, default=1, help="the most rows of a batch")
    parser.add_argument("--processes", type=int, default=1, help="of uvicorn")
    options = parser.parse_args()
    os.environ[SETTINGS] = msgspec.json.encode(vars(options)).decode()
    os.environ["PYTHONPATH"] = os.pathsep.join([os.path.dirname(__file__), os.environ.get("PYTHONPATH", "")])
    uvicorn.run(
        "serving_fastapi:app",
        factory=True,
        host="127.0.0.1",
        port=options.port,
        workers=options.processes,
        log_level="error",
        access_log=False,
    )


if __name__ == "__main__":
    main()
