"""Questions of the decision routes, as a fine-tuned classifier answers them: those that it was trained for. No I/O.

| question | model | the question's text must be |
|---|---|---|
| predicate: does a statement hold? | one or several labels | the statement is a label |
| choice: which of these? | one label of several | the options are the labels, all of them, in any order |
| score: which level? | one label of several | the levels are the labels, in the order of the classes |
| score | a regression with one output | any levels: the output counts them, 0 = the first |

What a question has beside that (descriptions, the instructions of a choice) is read by no classifier: it changes
nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import msgspec

from offramp.serving.outputs import scores
from offramp.serving.request import Refusal, RowResult
from offramp.serving.served import Served
from offramp.types.problem_types import REGRESSION, SINGLE_LABEL

NAMED = 20
"""The most labels that a message names."""

SHOWN = 200
"""The most characters of a request that a message repeats."""


@final
@dataclass(frozen=True)
class Predicate:
    """Whether a label applies.

    Attributes:
        index: of the label.
    """

    index: int

    @classmethod
    def read(cls, statement: str, served: Served) -> Predicate:
        """Return the question whether a statement holds.

        Raises:
            Refusal: the model has no such label.
        """
        names = served.config.id2label
        if served.config.problem_type == REGRESSION:
            raise _refusal("a predicate needs labels; this model is a regression", served)
        for index, name in names.items():
            if name == statement:
                return cls(index)
        raise _refusal(
            f"a predicate must be a label of the model, one of {_listed(served)}; got {statement[:SHOWN]!r}", served
        )

    def probability(self, result: RowResult, served: Served) -> float:
        """Return the label's probability."""
        return float(scores(result, served)[self.index])


@final
@dataclass(frozen=True)
class Choice:
    """Which of the labels applies.

    Attributes:
        order: the class of each option.
    """

    order: tuple[int, ...]

    @classmethod
    def read(cls, options: Sequence[str | bool], served: Served) -> Choice:
        """Return the question which of the options applies.

        Raises:
            Refusal: they are not the model's labels, or these do not exclude each other.
        """
        if served.config.problem_type != SINGLE_LABEL:
            raise _refusal(f"a choice needs labels that exclude each other; {_kind(served)}", served)
        classes = {name: index for index, name in served.config.id2label.items()}
        if len(options) != len(classes) or set(options) != set(classes):
            raise _refusal(f"the options of a choice must be the labels of the model: {_listed(served)}", served)
        return cls(tuple(classes[str(option)] for option in options))

    def probabilities(self, result: RowResult, served: Served) -> list[float]:
        """Return the probability of each option, in the order of the options."""
        values: list[float] = scores(result, served)[list(self.order)].tolist()
        return values


@final
@dataclass(frozen=True)
class Score:
    """Which of several ordered levels applies.

    Attributes:
        levels: how many there are.
    """

    levels: int

    @classmethod
    def read(cls, levels: Sequence[Any], served: Served) -> Score:
        """Return the question which level applies.

        Raises:
            Refusal: the model has neither these levels as its classes, in this order, nor one output that counts them.
        """
        config = served.config
        if config.problem_type == REGRESSION and config.num_labels == 1:
            return cls(len(levels))
        if config.problem_type != SINGLE_LABEL:
            raise _refusal(f"a score needs ordered classes or one output; {_kind(served)}", served)
        if list(levels) != [config.id2label[index] for index in range(config.num_labels)]:
            labels = f"the labels of the model, in its order: {_listed(served)}"
            raise _refusal(f"the levels of a score must be {labels}", served)
        return cls(len(levels))

    def probabilities(self, result: RowResult, served: Served) -> list[float]:
        """Return the probability of each level.

        A regression has none: the two levels beside its value share it, so that their mean is the value; values beyond
        the first or the last level count as that level.
        """
        if served.config.problem_type != REGRESSION:
            probabilities: list[float] = scores(result, served).tolist()
            return probabilities
        value = min(max(float(result.logits[0]), 0.0), self.levels - 1.0)
        return [max(0.0, 1 - abs(level - value)) for level in range(self.levels)]


def expected_level(probabilities: Sequence[float]) -> float:
    """Return the mean level."""
    return sum(level * share for level, share in enumerate(probabilities))


def choice_confidence(probabilities: Sequence[float]) -> float:
    """Return the largest probability on a scale of 0 (all are equal) to 1 (it is 1); System One's formula."""
    share = 1 / len(probabilities)
    return 1.0 if share == 1 else max(0.0, (max(probabilities) - share) / (1 - share))


def score_confidence(probabilities: Sequence[float]) -> float:
    """Return how close a score's levels are to the most probable one, 0 to 1; System One's formula.

    That is one minus their mean distance to it over the mean distance of equally probable levels to their center.
    """
    count = len(probabilities)
    if count == 1:
        return 1.0
    best = max(range(count), key=probabilities.__getitem__)
    spread = sum(share * abs(level - best) for level, share in enumerate(probabilities))
    uniform = sum(abs(level - (count - 1) / 2) for level in range(count)) / count
    return max(0.0, 1 - spread / uniform)


def as_text(value: Any) -> str:
    """Return a text as it is, and other JSON as its own text without spaces.

    Raises:
        Refusal: it is too deep or holds numbers too large to be written.
    """
    if isinstance(value, str):
        return value
    try:
        return msgspec.json.encode(value).decode()
    except (RecursionError, OverflowError) as error:
        raise Refusal("validation", f"a value cannot be written as text: {error}") from None


def _kind(served: Served) -> str:
    kind = served.config.problem_type.removesuffix("_classification").replace("_", " ")
    return f"this model is {kind} with {served.config.num_labels} outputs"


def _listed(served: Served) -> str:
    names = [repr(name) for name in served.config.id2label.values()]
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _refusal(message: str, served: Served) -> Refusal:
    return Refusal("not_applicable", f"{served.name} was not trained for this question: {message}")
