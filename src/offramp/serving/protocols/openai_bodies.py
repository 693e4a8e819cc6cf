"""OpenAI's bodies of requests and answers, as msgspec reads and writes them; bounds are OpenAI's."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from offramp.serving.endpoint import EarlyExit, ExitDetails

# --- moderations ----------------------------------------------------------------------------------------------


class ModerationPart(msgspec.Struct):
    """A part of an input of several kinds; `type` is "text"."""

    type: str
    text: str | None = None


class ModerationRequest(msgspec.Struct, kw_only=True):
    """Texts to check: one, several, or the one part of an input."""

    input: str | list[str | ModerationPart]
    model: str | None = None
    early_exit: EarlyExit | None = None


class ModerationResult(msgspec.Struct, omit_defaults=True):
    """What was flagged in a text."""

    flagged: bool
    categories: dict[str, bool]
    category_scores: dict[str, float]
    category_applied_input_types: dict[str, list[str]]
    early_exit: ExitDetails | None = None


class ModerationAnswer(msgspec.Struct):
    """The answer of `/v1/moderations`."""

    id: str
    model: str
    results: list[ModerationResult]


# --- decisions ------------------------------------------------------------------------------------------------


class DecisionPart(msgspec.Struct):
    """A part of a message or of instructions: "input_text" with `text`, or "input_json" with `data`."""

    type: str
    text: str | None = None
    data: dict[str, Any] | list[dict[str, Any]] | None = None


Content = str | list[DecisionPart]


class DecisionItem(msgspec.Struct):
    """An item of the input; a classifier takes one message, the user's."""

    content: Content | None = None
    role: str | None = None
    type: str = "message"


class PredicateQuestion(msgspec.Struct, tag_field="type", tag="predicate"):
    """Whether a statement holds."""

    instructions: Content
    name: str | None = None


class DecisionOption(msgspec.Struct):
    """An option of a choice."""

    value: str | bool
    description: str | None = None


class ChoiceQuestion(msgspec.Struct, tag_field="type", tag="choice"):
    """Which of the options applies."""

    choices: Annotated[list[DecisionOption], Meta(min_length=2, max_length=255)]
    instructions: Content
    name: str | None = None


class DecisionLevel(msgspec.Struct):
    """A level of a score."""

    label: str
    description: str | None = None


class ScoreQuestion(msgspec.Struct, tag_field="type", tag="score"):
    """Which of the ordered levels applies."""

    levels: Annotated[list[DecisionLevel], Meta(min_length=2)]
    instructions: Content
    name: str | None = None


class DecisionRequest(msgspec.Struct, kw_only=True):
    """Questions about a text; `safety_identifier` and `prompt_cache_...` change no answer."""

    input: str | list[DecisionItem]
    questions: Annotated[list[PredicateQuestion | ChoiceQuestion | ScoreQuestion], Meta(min_length=1, max_length=400)]
    model: str | None = None
    early_exit: EarlyExit | None = None


class DecisionPredicate(msgspec.Struct, tag_field="type", tag="predicate"):
    """The probability that a statement holds."""

    name: str | None
    probability: float


class OptionProbability(msgspec.Struct):
    """An option and its probability."""

    value: str | bool
    probability: float


class DecisionChoice(msgspec.Struct, tag_field="type", tag="choice"):
    """The most probable option, and all of them."""

    name: str | None
    choice: str | bool
    confidence: float
    probabilities: list[OptionProbability]


class LevelProbability(msgspec.Struct):
    """A level, its number from 0, and its probability."""

    label: str
    value: int
    probability: float


class DecisionScore(msgspec.Struct, tag_field="type", tag="score"):
    """The mean level, and all of them."""

    name: str | None
    score: float
    confidence: float
    probabilities: list[LevelProbability]


class CachedTokens(msgspec.Struct):
    """Tokens that a cache held; there is none."""

    cached_tokens: int = 0
    cache_write_tokens: int = 0


class ReasoningTokens(msgspec.Struct):
    """Tokens of reasoning; a classifier writes none."""

    reasoning_tokens: int = 0


class DecisionUsage(msgspec.Struct):
    """Tokens of the text, special ones included; a classifier writes none."""

    input_tokens: int
    input_tokens_details: CachedTokens
    output_tokens: int
    output_tokens_details: ReasoningTokens
    total_tokens: int


class DecisionAnswer(msgspec.Struct, omit_defaults=True):
    """The answer of `/v1/decisions`: the questions' answers, in their order."""

    model: str
    answers: list[DecisionPredicate | DecisionChoice | DecisionScore]
    usage: DecisionUsage
    early_exit: ExitDetails | None = None


# --- errors ---------------------------------------------------------------------------------------------------


class OpenAIError(msgspec.Struct):
    """The reason of a refusal."""

    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIRefusal(msgspec.Struct):
    """The answer to a refused request."""

    error: OpenAIError
