"""The page of a server: `GET /ui` and its files, `GET /ui/traffic`, `POST /ui/explain`.

The files need no key; what they show does. Nothing but the server itself is reached from the page, and a browser is
bound to that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from importlib import resources
from typing import TYPE_CHECKING, final

import msgspec
import numpy as np

from offramp.data.padding import Array
from offramp.data.rows import Text
from offramp.serving.endpoint import STATUS, Call, Reply, decode
from offramp.serving.metrics import served_point
from offramp.serving.outputs import check_all_answered
from offramp.serving.replies import plain_error
from offramp.serving.request import Options, Refusal, Request, RowResult
from offramp.serving.served import FULL
from offramp.serving.ui.explainer import Explainer, model_of
from offramp.serving.ui.state import shown_points, state_of
from offramp.serving.ui.traffic import Traffic

if TYPE_CHECKING:
    from offramp.serving.exchange import Exchange
    from offramp.serving.service import Service

AT_ONCE = 4
"""Texts that are explained at the same time; beyond them 429."""
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "cache-control": "no-cache",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
MEDIA = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
SCRIPTS = ("page.js", "server.js", "climb.js", "traffic.js", "elements.js")
NAMES = {"/ui": "page.html"} | {f"/ui/{name}": name for name in ("page.css", "icon.svg", *SCRIPTS)}


class Question(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `POST /ui/explain`: a text, or a pair."""

    text: str
    text_pair: str | None = None


class Explained(msgspec.Struct):
    """Its answer.

    Attributes:
        point: the name of the operating point in force.
        tokens: of the text, special tokens included.
        layers: of the exits that were read.
        points: the strictest first; see `offramp.serving.ui.explain.ExplainedPoint`.
    """

    point: str
    tokens: int
    layers: list[int]
    points: msgspec.Raw


def _files() -> Mapping[str, Reply]:
    folder = resources.files("offramp.serving.ui")
    return {
        path: Reply(
            (folder / name).read_bytes(), headers=HEADERS, media_type=f"{MEDIA[name.rpartition('.')[2]]}; charset=utf-8"
        )
        for path, name in NAMES.items()
    }


FILES = _files()
"""Path -> the page or a file of it."""


def refuse(call: Call, refusal: Refusal) -> Reply:
    """Return the reply to a call that is refused."""
    return plain_error(STATUS[refusal.kind], str(refusal), refusal.kind)


@final
class Ui:
    """What the page shows.

    Args:
        traffic: of the server.
    """

    def __init__(self, traffic: Traffic) -> None:
        self._traffic = traffic
        self._explainer: Explainer | None = None
        self._explaining = 0
        self._state: tuple[int, bytes] = (-1, b"")

    def state(self, service: Service) -> Reply:
        """Return the reply to `GET /ui/traffic`; it changes once a second, whoever asks."""
        second = self._traffic.second
        if self._state[0] != second:
            self._state = second, msgspec.json.encode(state_of(service, self._traffic.window()))
        return Reply(self._state[1], headers={"cache-control": "no-store"})

    async def explain(self, exchange: Exchange, call: Call, service: Service) -> Reply:
        """Return the reply to `POST /ui/explain`: the row runs to full depth, the points are replayed.

        Raises:
            Refusal: too many at the same time, or as for any other request.
        """
        question = decode(call.body, Question)
        text = question.text if question.text_pair is None else (question.text, question.text_pair)
        if self._explaining >= AT_ONCE:
            raise Refusal("overloaded", f"{AT_ONCE} texts are explained at the same time; try again later", 1.0)
        self._explaining += 1
        try:
            point = served_point(service)
            row, by_exit = await self._exits(exchange, service, text)
            points = await self._replayed(service, by_exit)
            return Reply(msgspec.json.encode(Explained(point, row.tokens, list(by_exit), msgspec.Raw(points))))
        finally:
            self._explaining -= 1

    async def _exits(self, exchange: Exchange, service: Service, text: Text) -> tuple[RowResult, dict[int, Array]]:
        """Return a text's row at full depth, and layer -> its logits (C,) at every exit that is read."""
        options = Options(operating_point=FULL, details=True)
        (row,) = await exchange.run(service, Request([text], options))
        check_all_answered([row])
        by_exit = row.logits_by_exit
        if 0 in service.served.layers_read and 0 not in by_exit:  # torch runs this exit where rows must leave there
            (first,) = await exchange.run(service, Request([text], replace(options, max_depth=0)))
            if first.error is None:
                by_exit = {0: first.logits, **by_exit}
        if not all(np.isfinite(logits).all() for logits in by_exit.values()):
            raise Refusal("failed", "the model's logits are not finite")
        return row, by_exit

    async def _replayed(self, service: Service, by_exit: Mapping[int, Array]) -> bytes:
        """Return the JSON of what each point does with logits (C,) by layer."""
        served = service.served
        if self._explainer is None:
            self._explainer = Explainer(model_of(served, [rung.name for rung in shown_points(service)]))
        return await self._explainer.explain(list(by_exit), np.stack([*by_exit.values()]), served.limits.timeout_s)

    async def close(self) -> None:
        """End the process that explains, where there is one."""
        if self._explainer is not None:
            await self._explainer.close()
