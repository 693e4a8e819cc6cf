"""A client for load on a server of texts, in a process of its own: keep-alive connections, one thread, no library.

It reads a plan as JSON from its input, and writes a report as JSON:

    {"port", "path", "bodies", "mode": "open", "phases", "seed", "lead_s", "late_s"}   Poisson arrivals, whatever comes
    {"port", "path", "bodies", "mode": "closed", "connections", "seconds"}             as fast as answers come
    {"port", "path", "bodies", "mode": "once", "connections"}                          each body once, answers kept

With Poisson arrivals, whose phases are pairs of a rate and seconds, the time of an answer counts from the moment at
which its request was due, also where the client sends it late, so a slow answer hides none that come after it. Requests
that are due before `lead_s` are sent, and do not count. A step ends before its time once so many answers are late that
the 99th percentile is beyond `late_s`. With `"keep": true` the report has the clock's time when it began, and each
request: when it was due, the seconds until its answer, the number of its text, and the first label of its answer. Times
are in seconds.
"""

from __future__ import annotations

import contextlib
import gc
import json
import math
import random
import select
import socket
import sys
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

MOST_CONNECTIONS = 500
TAIL = 0.01
"""The share of answers that may be later than the 99th percentile."""
LENGTH, LABEL = b"content-length: ", b'"label":"'
"""As uvicorn, on which all servers here run, and the own server write them."""
GRACE_S = 1.0
"""How long answers are waited for at the end of a step."""


@dataclass(eq=False)
class Connection:
    """A connection with at most one request on its way.

    Attributes:
        socket: not blocking once it is connected.
        row: the number of the request on its way.
        buffer: what has come of its answer.
    """

    socket: socket.socket
    row: int = -1
    buffer: bytes = b""

    def receive(self) -> tuple[int, bytes] | None:
        """Return the status of an answer and all its bytes; None as long as it is not whole.

        Raises:
            ConnectionError: the server has closed the connection.
        """
        received = self.socket.recv(65536)
        if not received:
            raise ConnectionResetError
        self.buffer += received
        end = self.buffer.find(b"\r\n\r\n")
        if end < 0:
            return None
        start = self.buffer.find(LENGTH, 0, end) + len(LENGTH)
        if len(self.buffer) < end + 4 + int(self.buffer[start : start + 10].split(b"\r", 1)[0]):
            return None
        answer, self.buffer = self.buffer, b""
        return int(answer[9:12]), answer


class Client:
    """Connections to a server, and what has come over them."""

    def __init__(self, port: int, path: str, bodies: Sequence[str]) -> None:
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        self.requests = [f"{head}Content-Length: {len(body.encode())}\r\n\r\n{body}".encode() for body in bodies]
        self.port = port
        self.idle: deque[Connection] = deque()
        self.busy: dict[int, Connection] = {}
        self.poll = select.epoll()

    def connect(self, count: int) -> None:
        """Open connections."""
        for _ in range(count):
            opened = socket.create_connection(("127.0.0.1", self.port))
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            opened.setblocking(False)
            self.poll.register(opened.fileno(), select.EPOLLIN)
            self.idle.append(Connection(opened))

    def send(self, row: int) -> bool:
        """Send a request; return False where no connection is free."""
        if not self.idle:
            if len(self.busy) >= MOST_CONNECTIONS:
                return False
            self.connect(1)
        connection = self.idle.popleft()
        connection.row = row
        self.busy[connection.socket.fileno()] = connection
        connection.socket.send(self.requests[row % len(self.requests)])
        return True

    def answers(self, timeout_s: float) -> list[tuple[int, int, bytes]]:
        """Return the number, status and bytes of what has come; a connection that is reset has status 0."""
        come = []
        for number, _ in self.poll.poll(timeout_s):
            connection = self.busy.get(number)
            if connection is None:
                self._drop(number)
                continue
            try:
                answer = connection.receive()
            except ConnectionError:
                answer = (0, b"")
            if answer is None:
                continue
            del self.busy[number]
            come.append((connection.row, *answer))
            if answer[0]:
                self.idle.append(connection)
            else:
                self._forget(connection)
        return come

    def _drop(self, number: int) -> None:
        """Close an idle connection that the server has closed."""
        for connection in [one for one in self.idle if one.socket.fileno() == number]:
            self.idle.remove(connection)
            self._forget(connection)

    def _forget(self, connection: Connection) -> None:
        self.poll.unregister(connection.socket.fileno())
        connection.socket.close()


def run_open(client: Client, plan: dict[str, Any]) -> dict[str, Any]:
    """Send at random moments of the phases, and report the times from when a request was due to its answer."""
    draw = random.Random(plan["seed"])
    due = arrivals(draw, plan["phases"])
    shift = draw.randrange(len(client.requests))
    client.requests = client.requests[shift:] + client.requests[:shift]
    lead = bisect_left(due, plan.get("lead_s", 0.0))
    took, labels = [math.inf] * len(due), [""] * len(due)
    failed, late, sent, bound = 0, 0, 0, plan["late_s"]
    oldest, allowed, open_rows = lead, TAIL * (len(due) - lead), len(due)
    end = sum(seconds for _, seconds in plan["phases"]) + GRACE_S
    client.connect(32)
    begin, began = time.perf_counter(), time.time()
    while open_rows and late <= allowed + 1:
        now = time.perf_counter() - begin
        if now > end:
            break
        while sent < len(due) and due[sent] <= now and client.send(sent):
            sent += 1
        waits = sent < len(due) and len(client.busy) < MOST_CONNECTIONS
        for row, status, answer in client.answers(max(due[sent] - now, 0) if waits else 0.05):
            open_rows -= 1
            if status == 200:
                took[row] = time.perf_counter() - begin - due[row]
                labels[row] = first_label(answer)
            failed += status != 200
        while oldest < len(due) and due[oldest] < now - bound:  # those that are overdue by now
            late += took[oldest] > bound
            oldest += 1
    done = sorted(took[lead:])
    report = {
        "requests": len(done),
        "whole": not open_rows,
        "failed": failed,
        "p50_ms": 1000 * quantile(done, 0.5),
        "p99_ms": 1000 * quantile(done, 1 - TAIL),
        "seconds": time.perf_counter() - begin,
    }
    if plan.get("keep"):
        texts = [(row + shift) % len(client.requests) for row in range(len(due))]
        report["began"] = began
        report["each"] = list(zip(due, took, texts, labels, strict=True))
    return report


def arrivals(draw: random.Random, phases: Sequence[tuple[float, float]]) -> list[float]:
    """Return the moments of Poisson arrivals; each phase has a rate, 0 = none, and lasts for some seconds."""
    due, start = list[float](), 0.0
    for rate, seconds in phases:
        moment = start
        while rate and (moment := moment + draw.expovariate(rate)) < start + seconds:
            due.append(moment)
        start += seconds
    return due


def first_label(answer: bytes) -> str:
    """Return the first label of an answer, which is the most probable one."""
    start = answer.find(LABEL) + len(LABEL)
    return answer[start : answer.find(b'"', start)].decode()


def quantile(ordered: Sequence[float], share: float) -> float:
    """Return the least value that a share of the others does not exceed; infinity for requests without an answer."""
    if not ordered:
        return math.inf
    return ordered[min(math.ceil(share * len(ordered)), len(ordered)) - 1]


def run_closed(client: Client, plan: dict[str, Any]) -> dict[str, Any]:
    """Send the next request of a connection as soon as its answer has come."""
    client.connect(plan["connections"])
    count, failed, sent, begin = 0, 0, 0, time.perf_counter()
    began, took = dict[int, float](), list[float]()
    while (now := time.perf_counter() - begin) < plan["seconds"]:
        while client.idle:
            began[sent] = time.perf_counter()
            client.send(sent)
            sent += 1
        for row, status, _ in client.answers(0.05):
            took.append(time.perf_counter() - began.pop(row))
            count += status == 200
            failed += status != 200
            if not status:
                client.connect(1)
    took.sort()
    times = {"p50_ms": 1000 * quantile(took, 0.5), "p99_ms": 1000 * quantile(took, 1 - TAIL)}
    return {"a_second": count / now, "count": count, "failed": failed, **times}


def run_once(client: Client, plan: dict[str, Any]) -> dict[str, Any]:
    """Send each body once, and report the answers."""
    client.connect(plan["connections"])
    bodies: list[str | None] = [None] * len(client.requests)
    sent = came = 0
    while came < len(bodies):
        while client.idle and sent < len(bodies):
            client.send(sent)
            sent += 1
        for row, status, answer in client.answers(1.0):
            came += 1
            bodies[row] = answer.partition(b"\r\n\r\n")[2].decode() if status == 200 else None
    return {"bodies": bodies}


def main() -> None:
    """Run the plan of the input."""
    plan = json.load(sys.stdin)
    client = Client(plan["port"], plan["path"], plan["bodies"])
    gc.collect()
    gc.disable()
    begin, cpu = time.perf_counter(), time.process_time()
    report = {"open": run_open, "closed": run_closed, "once": run_once}[plan["mode"]](client, plan)
    report["client_cores"] = (time.process_time() - cpu) / (time.perf_counter() - begin)
    with contextlib.suppress(BrokenPipeError):
        json.dump(report, sys.stdout)


if __name__ == "__main__":
    main()
