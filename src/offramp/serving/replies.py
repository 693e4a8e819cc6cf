"""Answers and headers of the server itself, of no wire format."""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import TYPE_CHECKING

import msgspec

from offramp.serving.endpoint import STATUS, Call, Reply
from offramp.serving.metrics import phase_seconds
from offramp.serving.request import Refusal

if TYPE_CHECKING:
    from offramp.serving.running import Running


def plain_error(status: int, message: str, kind: str) -> Reply:
    """Return an error where the path belongs to no wire format."""
    return Reply(msgspec.json.encode({"error": message, "error_type": kind}), status)


def plain_refusal(call: Call, refusal: Refusal) -> Reply:
    """Return a refusal where the path belongs to no wire format; without a key it has no body."""
    if refusal.kind == "unauthorized":
        return Reply(b"", 401)
    return plain_error(STATUS[refusal.kind], str(refusal), refusal.kind)


def no_route(method: str, path: str, methods: Collection[str]) -> Reply:
    """Return the answer to a path that there is not, or not with this method."""
    if not methods:
        return plain_error(404, "no such route; GET /openapi.json lists them", "not_found")
    allowed = ", ".join(methods)
    reply = plain_error(405, f"{path} takes {allowed}, not {method}", "method_not_allowed")
    return Reply(reply.body, reply.status, {"allow": allowed})


def answer_headers(running: Running | None, refusal: Refusal | None, begin: float) -> dict[str, str]:
    """Return text-embeddings-inference's headers, whole milliseconds; for a refusal when or how to try again."""
    if refusal is not None and refusal.kind == "unauthorized":
        return {"www-authenticate": "Bearer"}
    if refusal is not None:
        return {} if refusal.retry_after_s is None else {"retry-after": f"{max(round(refusal.retry_after_s), 1)}"}
    if running is None:
        return {}
    tokenization, queue, inference = (str(int(seconds * 1000)) for seconds in phase_seconds(running))
    total = str(int((time.perf_counter() - begin) * 1000))
    return {
        "x-compute-type": "cpu",
        "x-compute-time": total,
        "x-compute-tokens": str(running.tokens),
        "x-total-time": total,
        "x-tokenization-time": tokenization,
        "x-queue-time": queue,
        "x-inference-time": inference,
    }
