"""Answer texts: tokenizer + engine + operating point."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from offramp.data.batching import collate, encode, length_sorted, token_limit
from offramp.data.examples import Text
from offramp.errors import InvalidInput
from offramp.inference.engine import Engine
from offramp.inference.load_engine import AUTO, load_engine
from offramp.model.config import MultiExitConfig
from offramp.model.hub import load_config, load_points, load_tokenizer, named_point, refuse_images
from offramp.types.operating_point import DEFAULT, OperatingPoint
from offramp.types.outputs import Answers
from offramp.types.problem_types import MULTI_LABEL, REGRESSION

WINDOW = 1024  # texts that are sorted by length together while streaming
Answer = dict[str, Any]


@dataclass(frozen=True)
class Predictor:
    """A tokenizer, an engine and an operating point: answers texts, each at the depth that it needs.

    Attributes:
        engine: runs the model.
        tokenizer: the model's.
        point: policy and thresholds; None = full depth.

    Example:
        >>> predictor = offramp.Predictor.load(folder)
        >>> [sorted(answer) for answer in predictor(texts[:1])]
        [['exit_layer', 'label', 'score']]
    """

    engine: Engine
    tokenizer: PreTrainedTokenizerBase
    point: OperatingPoint | None = None

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike[str],
        engine: str = AUTO,
        operating_point: OperatingPoint | str | None = DEFAULT,
    ) -> Predictor:
        """Load a model folder or a hub name.

        Args:
            folder: what `save_pretrained` wrote, with its tokenizer.
            engine: "torch", on the GPU if there is one; "onnx" or "onnx-int8", what `offramp export` wrote; "auto"
                takes the best there is (see `offramp.inference.load_engine.load_engine`).
            operating_point: a point, or the name of one saved with the model; None = full depth. A model without a
                point called "default" runs at full depth.

        Raises:
            UnknownName: no such engine, no operating point of that name.
            InvalidInput: no model with exits can be loaded from there, or the engine cannot run the point.
        """
        refuse_images(folder, load_config(folder))
        point = operating_point
        if isinstance(point, str):
            points = load_points(folder)
            point = None if point == DEFAULT and DEFAULT not in points else named_point(points, point)
        loaded = load_engine(folder, engine, point)
        loaded.check(point)
        return cls(loaded, load_tokenizer(folder), point)

    def __call__(self, texts: Iterable[Text], batch_size: int = 32) -> list[Answer]:
        """Answer texts and pairs, in the order in which they came.

        Args:
            texts: each a text or a pair of texts.
            batch_size: how many at once; it does not change the answers. Texts of similar length go together.

        Returns:
            One dict a text: {"label", "score", "exit_layer"}; for regression {"value", "exit_layer"} (a list of values
            where there are several outputs); for several labels {"labels", "exit_layer"}, those above 0.5. A text whose
            logits are not finite has {"error", "exit_layer"} and no answer.

        Raises:
            InvalidInput: something that is neither a text nor a pair, or a batch size below 1.
        """
        _refuse_one_text(texts)
        if batch_size < 1:
            raise InvalidInput(f"batch_size must be at least 1, got {batch_size}")
        texts = list(texts)
        for index, text in enumerate(texts):
            if not _is_text(text):
                raise InvalidInput(f"item {index} must be a text or a pair of texts, got {text!r}")
        rows = encode(self.tokenizer, texts, token_limit(self.tokenizer, self.engine.config.backbone))
        answers: list[Answer] = [{} for _ in texts]
        batches = length_sorted(rows, batch_size)
        short = len(batches) <= 50
        for numbers in tqdm(batches, desc="predict", unit="batch", disable=short or None, leave=False):
            batch = self.answer(collate([rows[number] for number in numbers], self.engine.config.pad_token_id))
            for number, answer in zip(numbers, self._to_answers(batch), strict=True):
                answers[number] = answer
        return answers

    def answer(self, inputs: dict[str, Tensor]) -> Answers:
        """Answer a batch of tokens, (B, T) each; the answers are on the CPU."""
        return self.engine.answer(inputs, self.point)

    def stream(self, texts: Iterable[Text], batch_size: int = 32) -> Iterator[Answer]:
        """Answer texts as they come, in order, with no more than WINDOW of them in memory; see `__call__`."""
        _refuse_one_text(texts)
        waiting = iter(texts)
        while chunk := list(islice(waiting, WINDOW)):
            yield from self(chunk, batch_size)

    def _to_answers(self, answers: Answers) -> Iterator[Answer]:
        rows = zip(answers.logits.float(), answers.exit_layers.tolist(), answers.failed.tolist(), strict=True)
        for logits, layer, failed in rows:
            answer = {"error": "the model's logits are not finite"} if failed else to_answer(logits, self.engine.config)
            yield {**answer, "exit_layer": layer}


def to_answer(logits: Tensor, config: MultiExitConfig) -> Answer:
    """Return one row's logits, (C,), as a label, labels or values."""
    if config.problem_type == REGRESSION:
        values = logits.tolist()
        return {"value": values[0] if len(values) == 1 else values}
    if config.problem_type == MULTI_LABEL:
        return {"labels": [config.id2label[index] for index in (logits > 0).nonzero().flatten().tolist()]}
    probability, label = logits.softmax(dim=-1).max(dim=-1)
    return {"label": config.id2label[int(label)], "score": probability.item()}


def _refuse_one_text(texts: object) -> None:
    if isinstance(texts, str):
        raise InvalidInput("a predictor takes a list of texts, got one text")


def _is_text(text: object) -> bool:
    if isinstance(text, (tuple, list)):
        return len(text) == 2 and all(isinstance(part, str) for part in text)
    return isinstance(text, str)
