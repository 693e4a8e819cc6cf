"""The servers that `serving_race.py` compares with: LitServe, and FastAPI on uvicorn, around a full-depth model.

    python benchmarks/serving_rivals.py fastapi --port 8000 --folder MODEL --export FILES --model "exact int8" ...

Both take {"inputs": TEXT} at /predict and answer as text-embeddings-inference does. FastAPI's server writes the answer's
bytes itself, which is faster than its encoder. Requests that wait while the model is busy may make one batch.
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

from serving_engines import FullDepth

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


def run_litserve(options: argparse.Namespace) -> None:
    """Serve with LitServe."""
    import litserve

    class Classifier(litserve.LitAPI):
        def setup(self, device: str) -> None:
            self.model = FullDepth(options.folder, options.export, options.model, options.threads)

        def decode_request(self, request: dict[str, str]) -> dict[str, list[int]]:
            return self.model.tokens(request["inputs"])

        def batch(self, inputs: list[dict[str, list[int]]]) -> list[dict[str, list[int]]]:
            return list(inputs)

        def predict(self, rows: Any) -> Any:
            return self.model.probabilities(rows) if isinstance(rows, list) else self.model.probabilities([rows])[0]

        def unbatch(self, output: Any) -> Any:
            return list(output)

        def encode_response(self, output: Any) -> Response:
            return Response(msgspec.json.encode(self.model.ranked(output)), media_type="application/json")

    api = Classifier(max_batch_size=options.batch, batch_timeout=options.timeout_ms / 1000)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=options.workers, fast_queue=options.fast)
    server.run(
        host="127.0.0.1", port=options.port, log_level="error", access_log=False, generate_client_file=False
    )


def main() -> None:
    """Serve as the options say, until the process is ended."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["fastapi", "litserve"])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--folder", required=True)
    parser.add_argument("--export", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--threads", type=int, default=1, help="that compute a batch")
    parser.add_argument("--workers", type=int, default=0, help="batches at once; 0: in the request's own task")
    parser.add_argument("--batch", type=int, default=1, help="the most rows of a batch")
    parser.add_argument("--timeout-ms", type=float, default=0.0, help="LitServe waits so long for a batch")
    parser.add_argument("--fast", action="store_true", help="LitServe's queue over ZeroMQ")
    parser.add_argument("--processes", type=int, default=1, help="of uvicorn")
    options = parser.parse_args()
    if options.kind == "litserve":
        run_litserve(options)
        return
    os.environ[SETTINGS] = msgspec.json.encode(vars(options)).decode()
    os.environ["PYTHONPATH"] = os.pathsep.join([os.path.dirname(__file__), os.environ.get("PYTHONPATH", "")])
    uvicorn.run(
        "serving_rivals:app",
        factory=True,
        host="127.0.0.1",
        port=options.port,
        workers=options.processes,
        log_level="error",
        access_log=False,
    )


if __name__ == "__main__":
    main()
