"""A server of a benchmark as a process: started, waited for, measured, and ended with all its children, in any case."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

STARTS_S = 120.0
ENDS_S = 10.0
WATCHDOG = "read line; kill -s KILL -- -{group} 2>/dev/null"
"""Ends a group of processes once the script that started it has ended, however it did."""


class Server:
    """A server that runs.

    Attributes:
        port: of loopback.
        group: the number of its group of processes.
    """

    def __init__(self, port: int, group: int) -> None:
        self.port, self.group = port, group

    def cpu_s(self) -> float:
        """Return the seconds of processor time that its processes have taken."""
        ticks = 0
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                try:
                    fields = (entry / "stat").read_text().rpartition(")")[2].split()
                except OSError:
                    continue
                if int(fields[2]) == self.group:
                    ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")


def busy_s() -> float:
    """Return the seconds for which the machine's cores have worked, all processes together."""
    user, nice, system, _, _, irq, softirq, *_ = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    """Return a port of loopback that nobody uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(command: Sequence[str], health: str = "/health") -> Iterator[Server]:
    """Start a server, yield it once it is healthy, and end it with all its children.

    Args:
        command: of Python; "{port}" stands for the port.
        health: the path that answers 200 once it is ready.

    Raises:
        RuntimeError: it ends, or is not ready in time; with the last lines of what it wrote.
    """
    port = free_port()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what follows is cleaned up
    arguments = [part.replace("{port}", str(port)) for part in command]
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            [sys.executable, *arguments], stdout=output, stderr=output, stdin=subprocess.DEVNULL, start_new_session=True
        )
        watchdog = subprocess.Popen(
            ["/bin/sh", "-c", WATCHDOG.format(group=process.pid)], stdin=subprocess.PIPE, start_new_session=True
        )
        try:
            if not _ready(process, f"http://127.0.0.1:{port}{health}"):
                output.seek(0)
                raise RuntimeError(f"{' '.join(arguments)}: {output.read().decode()[-2000:]}")
            yield Server(port, process.pid)
        finally:
            _end(process)
            watchdog.communicate()


def _ready(process: subprocess.Popen[bytes], url: str) -> bool:
    end = time.monotonic() + STARTS_S
    while process.poll() is None and time.monotonic() < end:
        try:
            with urllib.request.urlopen(url, timeout=2) as reply:
                return bool(reply.status == 200)
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    return False


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask a server to end, and kill what is left of its group."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(ENDS_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
