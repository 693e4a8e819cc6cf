"""The first process of a server: holds the listening socket, starts the process that speaks HTTP, and again if it ends.

The socket outlives that process, so clients that connect meanwhile wait. It imports neither uvicorn nor a model.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from types import FrameType
from typing import final

from offramp.errors import InvalidInput
from offramp.serving.settings import ServerSettings

log = logging.getLogger("offramp.serving")

BACKLOG = 2048
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 10.0
"""How long to wait before the process is started again: doubled each time, until one is ready."""

GRACE_S = 5.0
"""How long after the drain the process may take to end; then it is ended: it hangs."""


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket; port 0 = any free one.

    Raises:
        InvalidInput: the address is no address of this machine, or in use.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        both = family == socket.AF_INET6 and socket.has_dualstack_ipv6()  # "::" listens for IPv4, too
        return socket.create_server(address[:2], family=family, backlog=BACKLOG, dualstack_ipv6=both)
    except OSError as error:
        reason = error.strerror if isinstance(error, socket.gaierror) else os.strerror(error.errno or 0)
        raise InvalidInput(f"cannot listen on {host}:{port}: {reason}") from None


def url_of(listening: socket.socket) -> str:
    """Return the URL of a listening socket."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@final
class Supervisor:
    """Starts the process that speaks HTTP, and again where it ends without being asked to."""

    def __init__(self, settings: ServerSettings, listening: socket.socket) -> None:
        self._settings, self._listening = settings, listening
        self._process: subprocess.Popen[bytes] | None = None
        self._ending = False

    def run(self) -> int:
        """Run until a signal, or until the model cannot be loaded; return the exit status."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM):
            signal.signal(number, self._end)
        restarts, pause_s = 0, FIRST_PAUSE_S
        while True:
            try:
                status, was_ready = self._run_once(restarts)
            except (OSError, ValueError) as error:  # no memory; or the signal came and closed the socket
                log.error("the process that speaks HTTP cannot be started: %s", error)
                status, was_ready = 1, False
            if self._ending:
                return 0 if status == -signal.SIGTERM else status  # it was still starting
            if restarts == 0 and not was_ready:
                return status
            log.error("the process that speaks HTTP ended with status %d; it is started again", status)
            pause_s = FIRST_PAUSE_S if was_ready else min(2 * pause_s, LONGEST_PAUSE_S)
            self._pause(pause_s)
            if self._ending:
                return 0
            restarts += 1

    def _run_once(self, restarts: int) -> tuple[int, bool]:
        """Start the process and wait for its end; return its status, and whether it was ready before."""
        own, other = socket.socketpair()
        with own:
            with other:
                numbers = [self._listening.fileno(), other.fileno()]
                command = [sys.executable, "-m", "offramp.serving.http_process", *map(str, numbers)]
                self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=numbers)
            with contextlib.suppress(OSError):  # it has ended already
                own.sendall(replace(self._settings, http_restarts=restarts).to_json())
            if self._ending:  # the signal came before there was a process
                self._signal(signal.SIGTERM)
            status = self._wait(self._process)
            own.setblocking(False)
            try:
                was_ready = bool(own.recv(64))
            except OSError:
                was_ready = False
        return status, was_ready

    def _wait(self, process: subprocess.Popen[bytes]) -> int:
        """Wait for a process; the first process of a container must take in the others that end, too."""
        while process.returncode is None:
            number, status = os.waitpid(-1, 0)
            if number == process.pid:
                process.returncode = os.waitstatus_to_exitcode(status)
        return process.returncode

    def _pause(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not self._ending and time.monotonic() < end:
            time.sleep(0.05)

    def _end(self, number: int, frame: FrameType | None) -> None:
        """Drain at the first signal; end at once at the second, and where the drain takes longer than it may."""
        if self._ending:
            self._signal(signal.SIGKILL)
            os._exit(128 + number)
        self._ending = True
        self._listening.close()
        self._signal(signal.SIGTERM)
        signal.setitimer(signal.ITIMER_REAL, self._settings.limits.drain_s + GRACE_S)

    def _signal(self, number: signal.Signals) -> None:
        """Send a signal to the process; `Popen.send_signal` would take its status, for which `_wait` waits."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, number)
