"""`offramp serve` with its real processes: start, restarts, drain, ends."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from support.command_line import offramp
from support.server import alive, command, descendants, serving


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

            with ThreadPoolExecutor(4) as threads:
                assert list(threads.map(server.ask, [b'{"input":["good cat","bad"]}'] * 20)) == [200] * 20
            lines = server.get("/metrics")[1].decode().splitlines()
            counts = {
                name: sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name + "{"))
                for name in ("offramp_rows_total", "offramp_request_rows_count", "te_request_success")
            }
            assert counts == {
                "offramp_rows_total": 40,  # of both processes
                "offramp_request_rows_count": 20,
                "te_request_success": 20,
            }

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
    def test_a_process_that_hangs_holds_up_no_end(self, exported: Path) -> None:
        with serving(exported, "--engine", "onnx-int8", "--drain", "0") as server:
            every = descendants(server.process.pid)
            os.kill(server.pids("http_process")[0], signal.SIGSTOP)
            server.process.terminate()
            assert server.process.wait(8) == 128 + signal.SIGALRM
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
    result = subprocess.run(program, capture_output=True, text=True, timeout=30)
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
