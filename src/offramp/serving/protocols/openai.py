"""OpenAI's `/v1/moderations` and `/v1/decisions`, answered by a fine-tuned classifier.

What is flagged: of a model with several labels a text for which one or more of them are part of the answer (above 0.5,
or the point's threshold of the label), each label being a category. Of a model with two classes, a text whose class is
the second one, which is the only category: the first class of a fine-tuned binary model is the negative one. With more
classes that exclude each other, none is known to be the harmless one, neither by number (it is the last of three in
common data sets of hate speech) nor by name; and a regression has no threshold. Those are refused.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from offramp.serving.endpoint import STATUS, Call, Endpoint, Reply, decode, early_options
from offramp.serving.outputs import check_all_answered, details, labels, scores
from offramp.serving.protocols.openai_bodies import (
    CachedTokens,
    ChoiceQuestion,
    Content,
    DecisionAnswer,
    DecisionChoice,
    DecisionItem,
    DecisionPredicate,
    DecisionRequest,
    DecisionScore,
    DecisionUsage,
    LevelProbability,
    ModerationAnswer,
    ModerationPart,
    ModerationRequest,
    ModerationResult,
    OpenAIError,
    OpenAIRefusal,
    OptionProbability,
    PredicateQuestion,
    ReasoningTokens,
    ScoreQuestion,
)
from offramp.serving.questions import (
    Choice,
    Predicate,
    Score,
    as_text,
    choice_confidence,
    expected_level,
    score_confidence,
)
from offramp.serving.request import Options, Refusal, Request, RowResult
from offramp.serving.served import Served
from offramp.types.problem_types import MULTI_LABEL, SINGLE_LABEL

MODELS = frozenset(
    (
        "omni-moderation-latest",
        "omni-moderation-2024-09-26",
        "text-moderation-latest",
        "text-moderation-stable",
        "gpt-6-luna",
    )
)
"""OpenAI's own models of these routes: a client that names one of them means this server's model."""

Question = PredicateQuestion | ChoiceQuestion | ScoreQuestion
Matched = tuple[Question, Predicate | Choice | Score]


def _options(body: ModerationRequest | DecisionRequest, served: Served) -> Options:
    if body.model not in MODELS:
        served.check_model(body.model)
    return early_options(body.early_exit)


# --- moderations ----------------------------------------------------------------------------------------------


def _read_moderation(call: Call, served: Served) -> Request:
    body: ModerationRequest = decode(call.body, ModerationRequest)
    options = _options(body, served)
    _categories(served)
    return Request([body.input] if isinstance(body.input, str) else _inputs(body.input), options)


def _categories(served: Served) -> list[str]:
    """Return the labels that can be flagged."""
    config = served.config
    names = [config.id2label[index] for index in range(config.num_labels)]
    if config.problem_type == MULTI_LABEL:
        return names
    if config.problem_type == SINGLE_LABEL and len(names) == 2:
        return names[1:]
    if config.problem_type == SINGLE_LABEL:
        reason = f"has {len(names)} classes that exclude each other, and none is known to be the harmless one"
    else:
        reason = "is a regression, which has no threshold"
    raise Refusal(
        "not_applicable", f"moderation takes a model of several labels or two classes; {served.name} {reason}"
    )


def _inputs(listed: Sequence[str | ModerationPart]) -> list[str]:
    """Return the texts of a list of texts, or the one text of an input in parts."""
    texts = [part for part in listed if isinstance(part, str)]
    if texts and len(texts) == len(listed):
        return texts
    part = listed[0] if len(listed) == 1 else None
    if isinstance(part, ModerationPart) and part.type == "text" and part.text is not None:
        return [part.text]
    raise Refusal(
        "validation", 'input must be a text, texts, or one part {"type": "text", "text"}; images are not read'
    )


def _write_moderation(request: Request, results: Sequence[RowResult], served: Served) -> Reply:
    check_all_answered(results)
    names, listed = _categories(served), []
    for result in results:
        chosen = labels(result, request, served)
        categories = {name: name in chosen for name in names}
        shares = scores(result, served).tolist()[-len(names) :]
        listed.append(
            ModerationResult(
                any(categories.values()),
                categories,
                dict(zip(names, shares, strict=True)),
                {name: ["text"] for name in names},
                details(result, request, served),
            )
        )
    return Reply(msgspec.json.encode(ModerationAnswer(f"modr-{uuid.uuid4().hex}", served.name, listed)))


# --- decisions ------------------------------------------------------------------------------------------------


def _read_decision(call: Call, served: Served) -> Request:
    body: DecisionRequest = decode(call.body, DecisionRequest)
    options = _options(body, served)
    matched = []
    for number, question in enumerate(body.questions):
        try:
            matched.append((question, _question(question, served)))
        except Refusal as error:
            raise Refusal(error.kind, f"questions[{number}]: {error}") from None
    return Request([_input_text(body.input)], options, matched)


def _question(question: Question, served: Served) -> Predicate | Choice | Score:
    if isinstance(question, PredicateQuestion):
        return Predicate.read(_text(question.instructions), served)
    if isinstance(question, ChoiceQuestion):
        return Choice.read([option.value for option in question.choices], served)
    return Score.read([level.label for level in question.levels], served)


def _input_text(value: str | list[DecisionItem]) -> str:
    """Return the text of the one message; there is no chat template that would join several."""
    if isinstance(value, str):
        return value
    if len(value) != 1 or value[0].type != "message" or value[0].role != "user" or value[0].content is None:
        raise Refusal(
            "validation", "input must be a text or one message of the user: a classifier has no chat template"
        )
    return _text(value[0].content)


def _text(content: Content) -> str:
    """Return a text, or that of its one part."""
    if isinstance(content, str):
        return content
    part = content[0] if len(content) == 1 else None
    if part is not None and part.type == "input_text" and part.text is not None:
        return part.text
    if part is not None and part.type == "input_json" and part.data is not None:
        return as_text(part.data)
    raise Refusal("validation", "content must be a text, or one part of type input_text or input_json")


def _write_decision(request: Request, results: Sequence[RowResult], served: Served) -> Reply:
    check_all_answered(results)
    (result,) = results
    matched: Sequence[Matched] = request.form
    answers = [_answer(question, fixed, result, served) for question, fixed in matched]
    usage = DecisionUsage(result.tokens, CachedTokens(), 0, ReasoningTokens(), result.tokens)
    fields = details(result, request, served)
    return Reply(msgspec.json.encode(DecisionAnswer(served.name, answers, usage, fields)))


def _answer(question: Any, fixed: Predicate | Choice | Score, result: RowResult, served: Served) -> Any:
    if isinstance(fixed, Predicate):
        return DecisionPredicate(question.name, fixed.probability(result, served))
    shares = fixed.probabilities(result, served)
    if isinstance(fixed, Choice):
        options = [
            OptionProbability(option.value, share) for option, share in zip(question.choices, shares, strict=True)
        ]
        best = options[shares.index(max(shares))].value
        return DecisionChoice(question.name, best, choice_confidence(shares), options)
    levels = [
        LevelProbability(level.label, value, share)
        for value, (level, share) in enumerate(zip(question.levels, shares, strict=True))
    ]
    return DecisionScore(question.name, expected_level(shares), score_confidence(shares), levels)


# --- errors ---------------------------------------------------------------------------------------------------

_CODES: Mapping[int, str] = {401: "invalid_api_key", 404: "model_not_found", 429: "rate_limit_exceeded"}
_FIELD = re.compile(r"`\$\.(\w+)")


def refuse(call: Call, refusal: Refusal) -> Reply:
    """Return a refusal in OpenAI's form."""
    status = STATUS[refusal.kind]
    field = _FIELD.search(str(refusal)) if refusal.kind == "mistyped" else None
    kind = "server_error" if status >= 500 else "invalid_request_error"
    error = OpenAIError(str(refusal), kind, field and field[1], _CODES.get(status))
    return Reply(msgspec.json.encode(OpenAIRefusal(error)), status)


ENDPOINTS = (
    Endpoint(
        ("/v1/moderations",),
        _read_moderation,
        _write_moderation,
        refuse,
        ModerationRequest,
        ModerationAnswer,
        "Flag texts (OpenAI).",
        "openai",
    ),
    Endpoint(
        ("/v1/decisions",),
        _read_decision,
        _write_decision,
        refuse,
        DecisionRequest,
        DecisionAnswer,
        "Answer the questions about a text that the model was trained for (OpenAI).",
        "openai",
    ),
)
