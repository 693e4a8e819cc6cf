"""System One's `/v1/systemone`, answered by a fine-tuned classifier; see `offramp.serving.questions`.

The statement of a noul is its instructions, without them its criterion "true". A state that is no string is read as its
JSON text without spaces.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from offramp.serving.endpoint import STATUS, Call, EarlyExit, Endpoint, ExitDetails, Reply, decode, early_options
from offramp.serving.outputs import check_all_answered, details
from offramp.serving.questions import (
    SHOWN,
    Choice,
    Predicate,
    Score,
    as_text,
    choice_confidence,
    expected_level,
    score_confidence,
)
from offramp.serving.request import Kind, Refusal, Request, RowResult
from offramp.serving.served import Served

LATEST = "jev-latest"
"""The model that clients ask for by default; it means this server's model."""

Content = str | dict[str, Any] | list[Any]

# --- bodies ---------------------------------------------------------------------------------------------------


class NoulCriteria(msgspec.Struct):
    """Descriptions of the two outcomes."""

    true: Content | None = None
    false: Content | None = None


class NoulQuestion(msgspec.Struct, tag_field="type", tag="noul"):
    """Whether a statement holds."""

    instructions: Content | None = None
    criteria: NoulCriteria | None = None


class ChoiceOfQuestion(msgspec.Struct, tag_field="type", tag="choice"):
    """Which of the options applies; `criteria` are the options with their descriptions."""

    criteria: Annotated[dict[str, Content | None], Meta(min_length=2, max_length=255)]
    instructions: Content | None = None


class ScoreOfQuestion(msgspec.Struct, tag_field="type", tag="score"):
    """Which of the ordered levels applies; `criteria` are the levels from the lowest."""

    criteria: Annotated[list[Content], Meta(min_length=2, max_length=10)]
    instructions: Content | None = None


class SystemOneRequest(msgspec.Struct, kw_only=True):
    """Questions about a state; `model` may be "jev-latest"."""

    state: Content
    questions: Annotated[
        dict[Annotated[str, Meta(min_length=1)], NoulQuestion | ChoiceOfQuestion | ScoreOfQuestion],
        Meta(min_length=1),
    ]
    model: str | None = None
    early_exit: EarlyExit | None = None


class NoulAnswer(msgspec.Struct, tag_field="type", tag="noul"):
    """The probability that a statement holds."""

    noul: float


class ChoiceOfAnswer(msgspec.Struct, tag_field="type", tag="choice"):
    """The most probable option, and all of them."""

    choice: str
    confidence: float
    probabilities: dict[str, float]


class ScoreOfAnswer(msgspec.Struct, tag_field="type", tag="score"):
    """The mean level, and all of them by their number."""

    score: float
    confidence: float
    probabilities: dict[str, float]
    legend: dict[str, Content]


class SystemOneUsage(msgspec.Struct):
    """Tokens of the text, special ones included; a classifier writes none."""

    input_tokens: int
    output_tokens: int


class SystemOneAnswer(msgspec.Struct, omit_defaults=True):
    """The answer of `/v1/systemone`."""

    model: str
    answers: dict[str, NoulAnswer | ChoiceOfAnswer | ScoreOfAnswer]
    usage: SystemOneUsage
    early_exit: ExitDetails | None = None


Question = NoulQuestion | ChoiceOfQuestion | ScoreOfQuestion
Matched = tuple[Question, Predicate | Choice | Score]

# --- requests and answers -------------------------------------------------------------------------------------


def _read(call: Call, served: Served) -> Request:
    body: SystemOneRequest = decode(call.body, SystemOneRequest)
    if body.model != LATEST:
        served.check_model(body.model)
    matched: dict[str, Matched] = {}
    for name, question in body.questions.items():
        try:
            matched[name] = (question, _question(question, served))
        except Refusal as error:
            raise Refusal(error.kind, f"question {name[:SHOWN]!r}: {error}") from None
    options = early_options(body.early_exit)
    return Request([as_text(body.state)], options, matched)


def _question(question: Question, served: Served) -> Predicate | Choice | Score:
    if isinstance(question, ChoiceOfQuestion):
        return Choice.read(list(question.criteria), served)
    if isinstance(question, ScoreOfQuestion):
        return Score.read([as_text(level) for level in question.criteria], served)
    statement = question.instructions
    if statement is None and question.criteria is not None:
        statement = question.criteria.true
    if statement is None:
        raise Refusal("validation", "a noul needs instructions, or criteria with true")
    return Predicate.read(as_text(statement), served)


def _write(request: Request, results: Sequence[RowResult], served: Served) -> Reply:
    check_all_answered(results)
    (result,) = results
    matched: Mapping[str, Matched] = request.form
    answers = {name: _answer(question, fixed, result, served) for name, (question, fixed) in matched.items()}
    usage = SystemOneUsage(result.tokens, 0)
    fields = details(result, request, served)
    return Reply(msgspec.json.encode(SystemOneAnswer(served.name, answers, usage, fields)))


def _answer(question: Any, fixed: Predicate | Choice | Score, result: RowResult, served: Served) -> Any:
    if isinstance(fixed, Predicate):
        return NoulAnswer(fixed.probability(result, served))
    shares = fixed.probabilities(result, served)
    if isinstance(fixed, Choice):
        by_option = dict(zip(question.criteria, shares, strict=True))
        return ChoiceOfAnswer(max(by_option, key=by_option.__getitem__), choice_confidence(shares), by_option)
    by_level = {str(level): share for level, share in enumerate(shares)}
    legend = {str(level): content for level, content in enumerate(question.criteria)}
    return ScoreOfAnswer(expected_level(shares), score_confidence(shares), by_level, legend)


# --- errors ---------------------------------------------------------------------------------------------------


class BodyFault(msgspec.Struct):
    """A fault of a body: its place, as "body" and names of fields, and the reason."""

    loc: list[str]
    msg: str
    type: str


class Fault(msgspec.Struct):
    """Another reason of a refusal."""

    error_type: str
    message: str


class SystemOneRefusal(msgspec.Struct):
    """The answer to a refused request."""

    detail: list[BodyFault] | Fault


_TYPES: Mapping[Kind, str] = {
    "not_applicable": "unsupported_question",
    "unknown_model": "not_found",
    "overloaded": "rate_limit_error",
    "unauthorized": "authentication_error",
    "failed": "internal_error",
}
_FAULTS = frozenset(("malformed", "mistyped", "validation", "empty"))
_PATH = re.compile(r"`\$((?:\.\w+|\[[^\]]*\])+)`")


def refuse(call: Call, refusal: Refusal) -> Reply:
    """Return a refusal in System One's form: a body that is at fault is a 422 that names the field."""
    if refusal.kind not in _FAULTS:
        fault = Fault(_TYPES.get(refusal.kind, refusal.kind), str(refusal))
        return Reply(msgspec.json.encode(SystemOneRefusal(fault)), STATUS[refusal.kind])
    path = _PATH.search(str(refusal))
    names = re.findall(r"[^.\[\]]+", path[1].replace("[...]", "")) if path else []
    listed = [BodyFault(["body", *names], str(refusal), f"{refusal.kind}_error")]
    return Reply(msgspec.json.encode(SystemOneRefusal(listed)), 422)


ENDPOINTS = (
    Endpoint(
        ("/v1/systemone",),
        _read,
        _write,
        refuse,
        SystemOneRequest,
        SystemOneAnswer,
        "Answer the questions about a state that the model was trained for (System One).",
        "systemone",
    ),
)
