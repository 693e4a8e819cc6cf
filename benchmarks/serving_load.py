"""A tiny model, its server, and clients that check every answer against the predictor's: for faults and for soaks."""

from __future__ import annotations

import http.client
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from transformers import BertConfig, BertTokenizer

from offramp.data.batching import encode
from offramp.inference.export import export
from offramp.inference.predictor import Predictor
from offramp.model.modeling import MultiExitModel
from offramp.types.graph_file import SOURCE
from offramp.types.operating_point import OperatingPoint, write_points

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = tuple(f"word{number}" for number in range(200))
POISON, BREAKS = "poison", "breaks"
"""Words of the poisoned model: the embedding of the first is NaN, that of the second is not there."""
VOCABULARY = (*SPECIAL, *WORDS, POISON, BREAKS)
POINT = OperatingPoint({"name": "margin"}, (0.3, 0.2, 0.2))
TIMEOUT_S = 20.0
RIGHT, WRONG, RESET, NO_CONNECTION = "right", "wrong", "reset", "no connection"


def make_model(folder: Path, poisoned: bool = False) -> Path:
    """Write a model of four layers with random weights, and export it: in int8, or poisoned in float32."""
    if (folder / ("model.onnx" if poisoned else "model.int8.onnx")).exists():
        return folder
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128, "num_hidden_layers": 4}
    config = BertConfig(vocab_size=len(VOCABULARY), max_position_embeddings=128, initializer_range=0.3, **sizes)
    model = MultiExitModel.from_backbone(config, num_labels=3, pooling="mean").eval()
    model.save_pretrained(folder)
    tokenizer = BertTokenizer(vocab={token: number for number, token in enumerate(VOCABULARY)}, model_max_length=128)
    tokenizer.save_pretrained(folder)
    write_points({"default": POINT}, folder / "operating_points.json")
    export(folder, int8=not poisoned, dataset=None if poisoned else encode(tokenizer, texts(64), 128))
    if poisoned:
        poison(folder / "model.onnx")
    return folder


def poison(path: Path) -> None:
    """Make the embedding of POISON NaN, and cut that of BREAKS off, so that the graph raises for it."""
    graph = onnx.load(path)
    for weight in graph.graph.initializer:
        if list(weight.dims) == [len(VOCABULARY), 64]:
            values = numpy_helper.to_array(weight)[:-1].copy()
            values[-1] = np.nan
            weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    kept = [entry for entry in graph.metadata_props if entry.key != SOURCE]  # which says what the file was written with
    del graph.metadata_props[:]
    graph.metadata_props.extend(kept)
    data = path.with_name(path.name + ".data")
    data.unlink()
    onnx.save(graph, path, save_as_external_data=True, location=data.name)


def texts(count: int, seed: int = 0, longest: int = 40) -> list[str]:
    """Return random texts of 1 to `longest` words."""
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(1, longest))) for _ in range(count)]


def expected(folder: Path, some: Sequence[str], engine: str) -> dict[str, dict[str, float]]:
    """Return the predictor's probabilities of each text, by label."""
    answers = Predictor.load(folder, engine, workers=1)(list(some), top_k=None)
    return {text: answer["scores"] for text, answer in zip(some, answers, strict=True)}


@dataclass
class Server:
    """`offramp serve`, as a process.

    Attributes:
        process: the first one; the others are below it.
        port: of loopback.
    """

    process: subprocess.Popen[bytes]
    port: int

    def pids(self, module: str = "") -> list[int]:
        """Return the processes below the first one that run a module of `offramp.serving`."""
        return [pid for pid in below(self.process.pid) if f"offramp.serving.{module}" in command_line(pid)]

    def is_ready(self, whole: bool = False) -> bool:
        """Return whether it says that it answers; `whole`: with all processes that run the model."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=2) as reply:
                ready = reply.status == 200
            if whole and ready:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=2) as reply:
                    ready = b'offramp_processes{state="missing"} 0' in reply.read()
        except (OSError, http.client.HTTPException):
            return False
        return ready

    def until_ready(self) -> float:
        """Wait until it answers, with all processes; return the seconds."""
        begin = time.perf_counter()
        while not self.is_ready(whole=True):
            if self.process.poll() is not None or time.perf_counter() - begin > 120:
                raise RuntimeError("the server is not ready")
            time.sleep(0.02)
        return time.perf_counter() - begin


def below(pid: int) -> list[int]:
    """Return the processes below one."""
    children = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            if int(path.read_text().rpartition(")")[2].split()[1]) == pid:
                children.append(int(path.parent.name))
    return [*children, *(other for child in children for other in below(child))]


def command_line(pid: int) -> str:
    """Return the command of a process; "" where it has ended."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    return ""


@contextmanager
def serving(folder: Path, *options: str, errors: str = os.devnull) -> Iterator[Server]:
    """Start a server of a folder, yield it once it is ready, and end it with all below it."""
    from serving_process import free_port

    port = free_port()
    command = [
        sys.executable,
        "-m",
        "offramp",
        "serve",
        str(folder),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        *options,
    ]
    with open(errors, "wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    server = Server(process, port)
    try:
        server.until_ready()
        yield server
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@dataclass
class Load:
    """Clients in threads, each with a connection that it keeps; all answers are checked.

    Attributes:
        port: of the server.
        wanted: the right probabilities of each text.
        tolerance: of a probability; 0 = equal in float32.
        rows: texts of a request.
        faults: text -> the status that is right for it.
        counts: outcomes of the requests: RIGHT, WRONG, RESET, NO_CONNECTION, or a status.
        examples: of wrong answers.
    """

    port: int
    wanted: Mapping[str, Mapping[str, float]]
    tolerance: float = 0.0
    rows: int = 1
    faults: Mapping[str, int] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event, init=False)
    _threads: list[threading.Thread] = field(default_factory=list, init=False)

    def begin(self, clients: int) -> Load:
        """Start clients."""
        for number in range(clients):
            self._threads.append(threading.Thread(target=self._work, args=(number,), daemon=True))
            self._threads[-1].start()
        return self

    def end(self) -> Counter[str]:
        """Let each client finish its request; return the counts."""
        self._stop.set()
        for thread in self._threads:
            thread.join(TIMEOUT_S + 5)
            if thread.is_alive():
                self.counts["hung"] += 1
        return self.counts

    def _work(self, number: int) -> None:
        draw, connection = random.Random(number), self._connection()
        names = [*self.wanted, *self.faults]
        while not self._stop.is_set():
            some = draw.sample(names, self.rows)
            try:
                outcome = self._outcome(connection, some)
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                connection = self._connection()
                outcome = NO_CONNECTION if isinstance(error, ConnectionRefusedError) else RESET
                if outcome == NO_CONNECTION:
                    time.sleep(0.05)
            self.counts[outcome] += 1
            if outcome in ("429", "503"):
                time.sleep(0.01)
        connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT_S)

    def _outcome(self, connection: http.client.HTTPConnection, some: Sequence[str]) -> str:
        connection.request("POST", "/predict", json.dumps({"inputs": [[text] for text in some]}))
        reply = connection.getresponse()
        body = json.loads(reply.read())
        faults = {self.faults[text] for text in some if text in self.faults}
        if reply.status != 200:
            if faults and reply.status in faults:
                return RIGHT
            clean = (
                isinstance(body, dict) and "error" in body and (reply.status != 429 or reply.getheader("retry-after"))
            )
            return str(reply.status) if clean else self._wrong(f"{reply.status} {body}")
        if faults:
            return self._wrong(f"an answer to {some}: {body}")
        right = all(self._is_right(self.wanted[text], answer) for text, answer in zip(some, body, strict=True))
        return RIGHT if right else self._wrong(f"{some} {body}")

    def _is_right(self, wanted: Mapping[str, float], answer: list[dict[str, Any]]) -> bool:
        found = {one["label"]: one["score"] for one in answer}
        return found.keys() == wanted.keys() and all(
            abs(np.float32(found[label]) - np.float32(score)) <= self.tolerance for label, score in wanted.items()
        )

    def _wrong(self, what: str) -> str:
        self.examples.append(what[:300])
        return WRONG
