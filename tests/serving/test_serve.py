"""`offramp serve` with its real processes: start, restarts, drain, ends."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest

from support.command_line import offramp

START_S = 30


class Server:
    """A server that runs: `pids` has the supervisor, the process that speaks HTTP, and those that run the model."""

    def __init__(self, process: "subprocess.Popen[str]", url: str) -> None:
        self.process, self.port = process, int(url.rpartition(":")[2])
        self.outcomes = Counter[str]()

    def get(self, path: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        return answer.status, body

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
def serving(folder: Path, *options: str, stderr: "IO[Any] | None" = None) -> Iterator[Server]:
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


def gone(pids: list[int]) -> bool:
    end = time.monotonic() + 5
    while any(map(alive, pids)) and time.monotonic() < end:
        time.sleep(0.02)
    return not any(map(alive, pids))


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes in /proc")
class TestProcesses:
    def test_what_is_killed_is_started_again_and_sigterm_drains(self, exported: Path) -> None:
        with serving(exported, "--engine", "onnx-int8", "--workers", "2", "--api-key", "k") as server:
            assert server.get("/readyz")[0] == 200
            workers, (web,) = server.pids("worker"), server.pids("http_process")
            assert len(workers) == 2
            assert "k" not in command(web).split()
            for pid in (server.process.pid, web, *workers):
                assert "libtorch" not in Path(f"/proc/{pid}/maps").read_text()

            os.kill(web, signal.SIGKILL)  # the socket lives on, the processes with the model end
            assert gone([web, *workers])
            server.until(200)
            assert server.metric('offramp_process_restarts_total{process="http"}') == 1
            assert server.metric('offramp_processes{state="idle"}') == 2

            slow = server.begin_request()
            clients = [threading.Thread(target=server.ask_until_closed) for _ in range(4)]
            for client in clients:
                client.start()
            time.sleep(0.3)
            every = descendants(server.process.pid)
            server.process.send_signal(signal.SIGTERM)
            time.sleep(0.5)
            with pytest.raises(ConnectionRefusedError):
                server.get("/readyz")
            slow.sendall(b'"input":"good cat"}')
            answer = slow.recv(1000)
            slow.close()
            assert answer.startswith(b"HTTP/1.1 503")  # a request that was on its way has an answer
            assert b"connection: close" in answer
            assert server.process.wait(10) == 0
            assert gone(every)
            for client in clients:
                client.join()
            assert set(server.outcomes) == {"200", "closed"}, server.outcomes
            assert server.outcomes["closed"] == 4

    @pytest.mark.slow
    def test_a_second_signal_ends_at_once(self, exported: Path) -> None:
        with serving(exported, "--engine", "onnx-int8", "--drain", "60") as server:
            slow = server.begin_request()
            time.sleep(0.2)
            every = descendants(server.process.pid)
            server.process.send_signal(signal.SIGINT)
            time.sleep(0.5)
            assert server.process.poll() is None
            server.process.send_signal(signal.SIGINT)
            assert server.process.wait(2) == 130
            slow.close()
            assert gone(every)

    @pytest.mark.slow
    def test_the_end_of_the_first_process_ends_all(self, exported: Path) -> None:
        with serving(exported, "--engine", "onnx-int8", "--workers", "2") as server:
            every = descendants(server.process.pid)
            assert len(every) == 3
            server.process.kill()
            assert gone(every)


def test_a_folder_that_is_no_model_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    program = [sys.executable, "-m", "offramp", "serve", str(tmp_path), "--host", "127.0.0.1", "--port", "0"]
    result = subprocess.run(program, capture_output=True, text=True, timeout=START_S)
    *_, last = result.stderr.splitlines()
    assert result.returncode == 1
    assert str(tmp_path) in last
    assert "Traceback" not in result.stderr


def test_a_port_in_use_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = offramp("serve", tmp_path, "--host", "127.0.0.1", "--port", taken.getsockname()[1])
    assert result.exit_code == 1
    assert re.fullmatch(r"Error: cannot listen on 127.0.0.1:\d+: Address already in use\n", result.output)
