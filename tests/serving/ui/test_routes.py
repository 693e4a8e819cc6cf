"""The page's routes in the real application, with a service whose rows are played."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from itertools import count
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import offramp.serving.ui.routes as routes
from offramp.serving.adaptive import Adaptive
from offramp.serving.app import App
from offramp.serving.audit import Audit
from offramp.serving.ladder import ladder_of
from offramp.serving.load_controller import LoadController
from offramp.serving.metrics import Metrics
from offramp.serving.request import Refusal, Request, RowResult
from offramp.serving.running import Running
from offramp.serving.served import FULL, Served
from offramp.serving.settings import ModelSettings, ServerSettings
from offramp.serving.ui.explainer import Explainer, model_of
from offramp.serving.ui.traffic import Traffic
from offramp.types.operating_point import Certificate, Measured, OperatingPoint
from support.served import served_model

CLOCK = count()  # a second passes whenever it is looked at
HERE = Path(routes.__file__).parent
BY_EXIT = {0: [1.0, 0.0, 0.0], 1: [1.0, 0.5, 0.0], 2: [0.0, 3.0, 0.0], 4: [0.0, 9.0, 0.0]}


class Rows:
    """A service: the row of "bad" fails, that of "nan" has logits that are not finite, others wait until `go`."""

    def __init__(self, served: Served) -> None:
        self.served, self.pool, self.queue = served, SimpleNamespace(alive=2), [1, 2, 3]
        self.adaptive: Adaptive | None = None
        self.go = asyncio.Event()
        self.requests: list[Request] = []

    async def start(self, request: Request) -> Running:
        self.requests.append(request)
        if request.items == ["full"]:
            raise Refusal("overloaded", "the server is at its limit", 1.0)
        await self.go.wait()
        finished = asyncio.get_running_loop().create_future()
        finished.set_result(None)
        by_exit = {layer: np.array(logits, np.float32) for layer, logits in BY_EXIT.items()}
        if request.items == ["nan"]:
            by_exit[1] = np.full(3, np.nan, np.float32)
        if request.items == ["torch"]:  # whose exit before the first layer runs only for rows that must leave there
            first = by_exit.pop(0)
            by_exit = {0: first} if request.options.max_depth == 0 else by_exit
        last = max(by_exit)
        row = RowResult(by_exit[last], last, 5, logits_by_exit=by_exit, point=FULL)
        if request.items == ["bad"]:
            row = RowResult.refused(Refusal("empty", "the text is blank"))
        return Running(request, FULL, [row], finished, 0.0, 0.05, tokens=5, answered=1.0)


class Played(Explainer):
    """Explains without a process."""

    async def explain(self, layers: Any, logits: Any, timeout_s: float) -> bytes:
        return json.dumps([list(layers), logits.tolist()]).encode()


def server(*keys: str) -> tuple[App, Rows]:
    metrics = Metrics()
    metrics.traffic = Traffic(CLOCK.__next__)
    app = App(ServerSettings(ModelSettings("m"), api_keys=keys), metrics)
    rows = Rows(served_model())
    app.service = metrics.service = rows  # type: ignore[assignment]
    app.ui._explainer = Played(model_of(rows.served, ["quick"]))  # type: ignore[misc]
    return app, rows


async def ask(app: App, path: str, body: Any = None, key: str = "") -> tuple[int, dict[str, str], bytes]:
    sent: list[Any] = []
    content = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": content, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"authorization", f"Bearer {key}".encode())] if key else []
    scope = {"type": "http", "method": "GET" if body is None else "POST", "path": path, "headers": headers}
    await app(scope, receive, send)  # type: ignore[arg-type]
    return sent[0]["status"], {name.decode(): value.decode() for name, value in sent[0]["headers"]}, sent[1]["body"]


def test_the_page_is_open_and_binds_the_browser_to_the_server() -> None:
    async def main() -> None:
        app, _ = server("k")
        for path, name in routes.NAMES.items():
            status, headers, body = await ask(app, path)
            assert (status, body) == (200, (HERE / name).read_bytes())
            policy = headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert not any(word in policy for word in ("unsafe", "*", "http", "data:", "blob:", "nonce", "sha"))
        assert set(routes.SCRIPTS) == {path.name for path in HERE.glob("*.js")}
        html = (HERE / "page.html").read_text()
        assert "<style" not in html
        assert " style=" not in html
        assert " on" not in {part[:3] for part in html.split('"')[::2] if "=" in part}
        assert html.count("<script") == html.count("<script src=") == 1

    asyncio.run(main())


def test_its_data_need_a_key_and_faults_have_one_form() -> None:
    async def main() -> None:
        app, rows = server("k")
        rows.go.set()
        cases = [
            ("/ui/traffic", None, "", 401, "unauthorized"),
            ("/ui/explain", {"text": "a"}, "", 401, "unauthorized"),
            ("/ui/explain", b"{", "k", 400, "malformed"),
            ("/ui/explain", {"texts": "a"}, "k", 400, "mistyped"),
            ("/ui/explain", {"text": ["a"]}, "k", 400, "mistyped"),
            ("/ui/explain", {"text": "bad"}, "k", 400, "empty"),
            ("/ui/explain", {"text": "nan"}, "k", 500, "failed"),
            ("/ui/explain", {"text": "full"}, "k", 429, "overloaded"),
            ("/ui/explain", {"text": "x" * 3_000_000}, "k", 413, "body_size"),
        ]
        for path, body, key, status, kind in cases:
            got, _, text = await ask(app, path, body, key)
            error = json.loads(text)
            assert (got, error["error_type"]) == (status, kind)
            assert "\n" not in error["error"]
            assert "internal" not in error["error"]
        assert (await ask(app, "/ui/traffic", key="k"))[0] == 200
        app.service = None
        assert [
            (await ask(app, path, body, "k"))[0] for path, body in (("/ui/traffic", None), ("/ui/explain", {}))
        ] == [
            503,
            503,
        ]
        assert (await ask(app, "/ui"))[0] == 200

    asyncio.run(main())


def test_a_text_runs_to_full_depth_with_its_exits_and_a_few_at_a_time() -> None:
    async def main() -> None:
        app, rows = server()
        bodies = [{"text": "a"}, {"text": "a", "text_pair": "b"}, {"text": "c"}, {"text": "d"}]
        tasks = [asyncio.ensure_future(ask(app, "/ui/explain", body)) for body in bodies]
        await asyncio.sleep(0)
        status, headers, body = await asyncio.wait_for(ask(app, "/ui/explain", {"text": "one too many"}), 5)
        assert (status, headers["retry-after"], json.loads(body)["error_type"]) == (429, "1", "overloaded")
        rows.go.set()
        answers = await asyncio.gather(*tasks)
        assert [answer[0] for answer in answers] == [200] * 4
        assert json.loads(answers[1][2]) == {
            "point": "default",
            "tokens": 5,
            "layers": list(BY_EXIT),
            "points": [list(BY_EXIT), list(BY_EXIT.values())],
        }
        assert [list(request.items) for request in rows.requests] == [["a"], [("a", "b")], ["c"], ["d"]]
        options = rows.requests[0].options
        assert (options.operating_point, options.details) == (FULL, True)
        other = await ask(app, "/ui/explain", {"text": "torch"})  # the four have left
        assert json.loads(other[2])["points"] == [list(BY_EXIT), list(BY_EXIT.values())]
        assert [request.options.max_depth for request in rows.requests[4:]] == [None, 0]
        assert sum(app.metrics.traffic.window().requests) == 0  # the page's own requests are not traffic

    asyncio.run(main())


def rung(speedup: float, level: float) -> OperatingPoint:
    measured = Measured("accuracy", 0.9, 0.9, 0.99, 4 / speedup, 4, 500)
    agreement = Certificate("agreement", level, 0.05, level, level / 2, 500, "binomial", None, "ab")
    return OperatingPoint({"name": "margin"}, (0.5, 0.5, 0.5), {}, measured, agreement=agreement)


def test_the_state_has_the_ladder_and_what_the_audit_knows() -> None:
    async def main() -> None:
        app, rows = server()
        state = json.loads((await ask(app, "/ui/traffic"))[2])
        assert (state["model"], state["layers"], state["outputs"]) == ("tiny", [0, 1, 2, 4], 3)
        assert (state["ladder"], state["point"], state["processes"], state["waiting"]) == (False, "default", 2, 3)
        assert [(point["name"], point["cost"]) for point in state["points"]] == [
            ("full", 1.0),
            ("default", None),
            ("quick", None),
        ]

        points = {"full": rung(1, 0), "keep-99": rung(2, 0.1), "2x": rung(4, 0.2), "4x": rung(8, 0.3)}
        ladder = ladder_of(points, "keep-99", "2x")
        audit = Audit(ladder, 0.01, 0.05, Random(0))
        for _ in range(60):
            audit.monitors[2].add(True)
        audit.closed, audit.audited, audit.dropped = 2, 60, 7
        rows.adaptive = Adaptive(ladder, LoadController(ladder, 0.05), audit, None, "")  # type: ignore[arg-type]
        rows.served.points.clear()  # type: ignore[attr-defined]
        rows.served.points.update(points)  # type: ignore[attr-defined]
        app.ui._state = (-1, b"")  # type: ignore[misc]
        state = json.loads((await ask(app, "/ui/traffic"))[2])
        assert (state["ladder"], state["point"], state["audited"], state["dropped"]) == (True, "keep-99", 60, 7)
        names = ("name", "cost", "level", "allowed", "closed", "audited", "differ")
        assert [tuple(point[name] for name in names) for point in state["points"]] == [
            ("full", 1.0, 0.0, False, False, 0, 0),
            ("keep-99", 0.5, 0.1, True, False, 0, 0),
            ("2x", 0.25, 0.2, True, True, 60, 60),
            ("4x", 0.125, 0.3, False, True, 0, 0),
        ]
        assert state["points"][2]["agreement_bound"] < 0.5
        assert state["points"][0]["agreement_bound"] is None

    asyncio.run(main())


def play_explainer(program: str, monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """Let a program take the part of the process that explains; return those that are started."""
    started: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def start(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        started.append(popen([sys.executable, "-c", program, command[-1]], **options))
        return started[-1]

    monkeypatch.setattr("offramp.serving.ui.explainer.subprocess.Popen", start)
    return started


def test_a_client_that_goes_takes_no_answer_of_the_next_one_and_ends_no_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The program answers with the number of a row's layers, after a tenth of a second."""
    program = (
        "import json, socket, sys, time\n"
        "with socket.socket(fileno=int(sys.argv[1])) as end, end.makefile('rwb') as lines:\n"
        "    lines.readline()\n"
        "    for line in iter(lines.readline, b''):\n"
        "        time.sleep(0.1); lines.write(b'%d\\n' % len(json.loads(line)['layers'])); lines.flush()\n"
    )
    started = play_explainer(program, monkeypatch)

    async def main() -> None:
        explainer = Explainer(model_of(served_model(), ["full", "quick"]))
        gone = asyncio.ensure_future(explainer.explain([0, 1, 2, 4], np.zeros((4, 3), np.float32), 5))
        await asyncio.sleep(0.05)
        gone.cancel()
        assert int(await explainer.explain([0, 1], np.zeros((2, 3), np.float32), 5)) == 2
        assert len(started) == 1
        await explainer.close()

    asyncio.run(main())


@pytest.mark.parametrize("fault", ["ended", "idle"])
def test_the_process_that_explains_is_started_again(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its program is played by one that answers with its number, and ends at the third row."""
    program = (
        "import os, socket, sys\n"
        "with socket.socket(fileno=int(sys.argv[1])) as end, end.makefile('rwb') as lines:\n"
        "    lines.readline()\n"
        "    for _ in range(2):\n"
        "        lines.readline(); lines.write(b'%d\\n' % os.getpid()); lines.flush()\n"
        "    lines.readline()\n"
    )
    started = play_explainer(program, monkeypatch)

    async def main() -> None:
        explainer = Explainer(model_of(served_model(), ["full", "quick"]), 0.05 if fault == "idle" else 60)
        logits = np.zeros((4, 3), np.float32)
        first = int(await explainer.explain([0, 1, 2, 4], logits, 5))
        if fault == "idle":
            await asyncio.to_thread(started[0].wait, 5)
        else:
            assert int(await explainer.explain([0, 1, 2, 4], logits, 5)) == first
            with pytest.raises(Refusal, match="the process that explains exits has ended"):
                await explainer.explain([0, 1, 2, 4], logits, 5)
        assert int(await explainer.explain([0, 1, 2, 4], logits, 5)) != first
        await explainer.close()
        assert [process.poll() is None for process in started] == [False, False]

    asyncio.run(main())
