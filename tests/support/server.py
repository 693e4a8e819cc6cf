"""`offramp serve` with its real processes, for tests that need a running server."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

START_S = 30


class Server:
    """A server that runs: `pids` has the supervisor, the process that speaks HTTP, and those that run the model."""

    def __init__(self, process: subprocess.Popen[str], url: str) -> None:
        self.process, self.port = process, int(url.rpartition(":")[2])
        self.outcomes = Counter[str]()

    def get(self, path: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        return answer.status, body

    def ask(self, body: bytes) -> int:
        """Return the status of a request to /classify."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        connection.request("POST", "/classify", body, {"authorization": "Bearer k"})
        answer = connection.getresponse()
        answer.read()
        connection.close()
        return answer.status

    def ask_until_closed(self) -> None:
        """Ask on one connection until an answer says that the server closes it; count what comes."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        while True:
            try:
                connection.request("POST", "/classify", b'{"input":"good cat"}', {"authorization": "Bearer k"})
                answer = connection.getresponse()
                answer.read()
            except OSError as error:
                self.outcomes[type(error).__name__] += 1
                break
            self.outcomes[str(answer.status)] += 1
            if answer.will_close:
                self.outcomes["closed"] += 1
                break
        connection.close()

    def begin_request(self) -> socket.socket:
        """Send a request but for the last 19 bytes of its body."""
        connection = socket.create_connection(("127.0.0.1", self.port))
        head = b"POST /classify HTTP/1.1\r\nhost: a\r\nauthorization: Bearer k\r\ncontent-length: 20\r\n\r\n"
        connection.sendall(head + b"{")
        return connection

    def pids(self, module: str) -> list[int]:
        """The processes that run a module, of this server."""
        return [pid for pid in descendants(self.process.pid) if f"offramp.serving.{module}" in command(pid)]

    def until(self, status: int, path: str = "/readyz") -> None:
        end = time.monotonic() + START_S
        while time.monotonic() < end:
            try:
                if self.get(path)[0] == status:
                    return
            except (OSError, http.client.HTTPException):
                pass
            time.sleep(0.02)
        raise TimeoutError(f"{path} does not answer {status}")

    def metric(self, sample: str) -> float:
        lines = self.get("/metrics")[1].decode().splitlines()
        return next(float(line.rpartition(" ")[2]) for line in lines if line.startswith(sample + " "))


def command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def descendants(pid: int) -> list[int]:
    children = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(path.read_text().rpartition(")")[2].split()[1]) == pid:
                children.append(int(path.parent.name))
        except OSError:
            continue
    return [*children, *(below for child in children for below in descendants(child))]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@contextmanager
def serving(folder: Path, *options: str, stderr: IO[Any] | None = None) -> Iterator[Server]:
    program = [sys.executable, "-m", "offramp", "serve", str(folder), "--host", "127.0.0.1", "--port", "0", "--json"]
    process = subprocess.Popen(
        [*program, *options], stdout=subprocess.PIPE, stderr=stderr or subprocess.DEVNULL, text=True
    )
    try:
        assert process.stdout is not None
        yield Server(process, json.loads(process.stdout.readline())["url"])
    finally:
        left = descendants(process.pid)
        process.kill()
        process.wait()
        for pid in left:
            if alive(pid):
                os.kill(pid, signal.SIGKILL)
        process.stdout.close()
