"""Attacks by synonyms on a system that is only asked, never opened: to change its answer, or to keep it busy.

To fool: Jin et al., "Is BERT Really Robust?" (TextFooler), AAAI 2020, arXiv:1907.11932, algorithm 1: words in the
order of what their deletion does, the synonyms of a word tried all at once. To slow down: the aim of Hong et al., "A
Panda? No, It's a Sloth: Slowdown Attacks on Adaptive Multi-Exit Neural Network Inference", ICLR 2021,
arXiv:2010.02432, whose attack has gradients and images; here it has the same search and the same synonyms.

As TextFooler's code it asks for all synonyms of a word, also those that turn out to change the meaning. It differs
from that code: no check of the part of speech; synonyms are a fixed list of near words, not all within a radius; words
without synonyms are not ranked; the meaning is that of the whole text, held against the original.
"""

from __future__ import annotations

import gzip
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from torch import Tensor

Words = tuple[str, ...]


@dataclass(frozen=True)
class SearchAnswers:
    """What a deployed system tells of N texts: what anybody sees of it.

    Attributes:
        probabilities: (N, C) at the exit taken.
        exit_layers: (N,) or, as well, the time that the answer took.
    """

    probabilities: Tensor
    exit_layers: Tensor

    @property
    def answers(self) -> Tensor:
        """(N,) class numbers."""
        return self.probabilities.argmax(dim=-1)


class Goal(ABC):
    """What an attacker wants."""

    @abstractmethod
    def gain(self, outcome: SearchAnswers) -> Tensor:
        """How near each text is to the goal, (N,); -inf = not to be taken."""

    @abstractmethod
    def reached(self, outcome: SearchAnswers) -> Tensor:
        """Whether each text is all that is wanted, (N,) bool."""

    def importance(self, outcome: SearchAnswers) -> Tensor:
        """What each text with a word left out says of that word, (N,)."""
        return self.gain(outcome)


@final
@dataclass(frozen=True)
class Fool(Goal):
    """Another answer than `label`.

    Attributes:
        label: the right answer, which the system gives.
        first: the probabilities of the text as it is, (C,).
    """

    label: int
    first: Tensor

    def gain(self, outcome: SearchAnswers) -> Tensor:
        """See `Goal`."""
        return 1 - outcome.probabilities[:, self.label]

    def reached(self, outcome: SearchAnswers) -> Tensor:
        """See `Goal`."""
        return outcome.answers != self.label

    def importance(self, outcome: SearchAnswers) -> Tensor:
        """TextFooler's equation 2: what the answer loses, and what another answer wins where it has changed."""
        lost = self.first[self.label] - outcome.probabilities[:, self.label]
        won = outcome.probabilities.amax(dim=-1) - self.first[outcome.answers]
        return torch.where(self.reached(outcome), lost + won, lost)


@final
@dataclass(frozen=True)
class Slow(Goal):
    """The same answer at the deepest exit; among texts of one exit the one whose answer is least sure.

    Attributes:
        answer: what the system says of the text as it is, right or wrong.
        depth: the last layer.
    """

    answer: int
    depth: int

    def gain(self, outcome: SearchAnswers) -> Tensor:
        """See `Goal`."""
        gain = self.importance(outcome)
        return torch.where(outcome.answers == self.answer, gain, -torch.inf)

    def reached(self, outcome: SearchAnswers) -> Tensor:
        """See `Goal`."""
        return (outcome.answers == self.answer) & (outcome.exit_layers == self.depth)

    def importance(self, outcome: SearchAnswers) -> Tensor:
        """See `Goal`; here with whatever answer."""
        return outcome.exit_layers - outcome.probabilities.amax(dim=-1)


@dataclass(frozen=True)
class SearchResult:
    """How a search ended.

    Attributes:
        words: the text that is nearest to the goal.
        reached: whether it is all that was wanted.
        queries: texts that the system was asked for, the original among them.
        changed: words that are not the original ones.
    """

    words: Words
    reached: bool
    queries: int
    changed: int


def search(
    words: Words,
    goal: Goal,
    ask: Callable[[Sequence[Words]], SearchAnswers],
    similar: Callable[[Sequence[Words]], Tensor],
    synonyms: Mapping[str, Sequence[str]],
    least: float,
) -> SearchResult:
    """Replace words one after the other, the most important first, each by the synonym that gains most.

    Args:
        words: of the original text, which does not reach the goal.
        goal: what is wanted.
        ask: the system.
        similar: how near texts are to the original, (N,) cosines.
        synonyms: of words in small letters.
        least: the similarity that must be kept.
    """
    places = [place for place, word in enumerate(words) if synonyms.get(word.lower())]
    best, queries, changed = goal.gain(ask([words])).item(), 1, 0
    if not places:
        return SearchResult(words, False, queries, changed)
    importance = goal.importance(ask([words[:place] + words[place + 1 :] for place in places]))
    queries += len(places)
    for number in importance.argsort(descending=True, stable=True).tolist():
        place = places[number]
        texts = [(*words[:place], synonym, *words[place + 1 :]) for synonym in synonyms[words[place].lower()]]
        outcome = ask(texts)
        queries += len(texts)
        reached, gain = goal.reached(outcome), goal.gain(outcome)
        if reached.any():
            good = [texts[option] for option in reached.nonzero().flatten().tolist()]
            closeness = similar(good)
            if closeness.max() >= least:
                return SearchResult(good[closeness.argmax()], True, queries, changed + 1)
        for option in gain.argsort(descending=True, stable=True).tolist():
            if gain[option] <= best or reached[option]:
                continue
            if similar([texts[option]]).item() >= least:
                best, words, changed = gain[option].item(), texts[option], changed + 1
                break
    return SearchResult(words, False, queries, changed)


def read_synonyms(folder: Path, stop_words: frozenset[str]) -> dict[str, list[str]]:
    """What may stand for a word: counter-fitted neighbours and PPDB's synonyms, less WordNet's antonyms.

    Args:
        folder: of the word lists.
        stop_words: have no synonyms, as in TextFooler.
    """
    with gzip.open(folder / "counterfitted_neighbors.json.gz", "rt", encoding="utf-8") as file:
        results = {word: dict.fromkeys(near) for word, near in json.load(file).items()}
    for one, other in _pairs(folder / "ppdb_synonyms.tsv.gz"):
        results.setdefault(one, {})[other] = None
        results.setdefault(other, {})[one] = None
    for one, other in _pairs(folder / "wordnet_antonyms.tsv.gz"):
        results.get(one, {}).pop(other, None)
        results.get(other, {}).pop(one, None)
    return {
        word: [near for near in others if near != word] for word, others in results.items() if word not in stop_words
    }


def _pairs(path: Path) -> list[list[str]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [line.rstrip("\n").split("\t") for line in file]


def check() -> None:
    """Both searches against a system whose answers are known by hand.

    It says class 0 with probability 0.95, less 0.2 for each "b", less 0.5 if there is a "c" or "d"; below 0.8 it needs
    exit 2.
    """

    def ask(texts: Sequence[Words]) -> SearchAnswers:
        first = torch.tensor([0.95 - 0.2 * words.count("b") - 0.5 * len({"c", "d"} & {*words}) for words in texts])
        return SearchAnswers(torch.stack((first, 1 - first), dim=-1), 1 + (first < 0.8).long())

    def similar(texts: Sequence[Words]) -> Tensor:
        return torch.tensor([0.0 if "d" in words else 1.0 for words in texts])

    words, synonyms = ("A", "stays", "a"), {"a": ["c", "d", "b"], "x": ["y"]}
    first = ask([words])
    fooled = search(words, Fool(0, first.probabilities[0]), ask, similar, synonyms, least=0.5)
    assert fooled == SearchResult(("c", "stays", "a"), True, 1 + 2 + 3, 1), (
        fooled
    )  # itself, two deletions, three synonyms
    slowed = search(words, Slow(0, depth=2), ask, similar, synonyms, least=0.5)
    assert slowed == SearchResult(("b", "stays", "a"), True, 1 + 2 + 3, 1), slowed  # "c" would change the answer
    hindered = search(words, Fool(0, first.probabilities[0]), ask, similar, {"a": ["d"]}, least=0.5)
    assert hindered == SearchResult(words, False, 1 + 2 + 2, 0), hindered  # "d" means something else
    twice = search(words, Fool(0, first.probabilities[0]), ask, similar, {"a": ["b", "e"]}, least=0.5)
    assert twice == SearchResult(("b", "stays", "b"), False, 1 + 2 + 2 + 2, 2), twice  # 0.55 is still class 0


if __name__ == "__main__":
    check()
