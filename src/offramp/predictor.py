"""Texts in, answers out: tokenizer + model + operating point."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from offramp.batches import collate, encode, length_sorted, token_limit
from offramp.data import Text
from offramp.engine.loop import run
from offramp.errors import InvalidInput, UnknownName
from offramp.model import MultiExitModel, load_folder
from offramp.policies.base import Policy
from offramp.policies.fixed import Fixed
from offramp.registry import load_policy
from offramp.tracing import ENGINES
from offramp.values import MULTI_LABEL, REGRESSION, Answers, OperatingPoint

DEFAULT = "default"
WINDOW = 1024  # texts that are sorted by length together while streaming
Answer = dict[str, Any]


@dataclass(frozen=True)
class Predictor:
    """Answers texts, each at the depth that it needs.

    Attributes:
        model: in eval mode, on the device to run on.
        tokenizer: the model's.
        point: where to leave; None = full depth.
    """

    model: MultiExitModel
    tokenizer: PreTrainedTokenizerBase
    point: OperatingPoint | None = None

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike[str],
        engine: str = "auto",
        operating_point: OperatingPoint | str | None = DEFAULT,
    ) -> Predictor:
        """Load a model folder or a hub name; on the GPU if there is one.

        Args:
            folder: what `save_pretrained` wrote, with its tokenizer.
            engine: "torch"; "auto" takes the best there is.
            operating_point: a point, or the name of one saved with the model; None = full depth. A model without a
                point called "default" runs at full depth.

        Raises:
            UnknownName: no such engine, no operating point of that name.
            InvalidInput: no model with exits can be loaded from there.
        """
        if engine not in ("auto", *ENGINES):
            raise UnknownName(f"unknown engine {engine!r}; known: auto, {', '.join(ENGINES)}")
        model, tokenizer = load_folder(folder)
        if operating_point == DEFAULT and DEFAULT not in model.operating_points:
            operating_point = None
        model.set_operating_point(operating_point)
        return cls(model, tokenizer, model.operating_point)

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
        for number, text in enumerate(texts):
            if not _is_text(text):
                raise InvalidInput(f"item {number} must be a text or a pair of texts, got {text!r}")
        rows = encode(self.tokenizer, texts, token_limit(self.tokenizer, self.model.config.backbone))
        answers: list[Answer] = [{} for _ in texts]
        batches = length_sorted(rows, batch_size)
        short = len(batches) <= 50
        for numbers in tqdm(batches, desc="predict", unit="batch", disable=short or None, leave=False):
            found = self.answer(collate([rows[number] for number in numbers], self.model.config.pad_token_id))
            for number, told in zip(numbers, self._told(found), strict=True):
                answers[number] = told
        return answers

    @torch.inference_mode()
    def answer(self, inputs: dict[str, Tensor]) -> Answers:
        """Answer a batch of tokens, (B, T) each, wherever they lie; the answers are on the CPU."""
        inputs = {name: value.to(self.model.device) for name, value in inputs.items()}
        policy: Policy = load_policy(self.point.policy) if self.point else Fixed()
        thresholds = self.point.thresholds if self.point else float(self.model.layers[-1])
        answers = run(self.model, policy, thresholds, inputs)
        return Answers(answers.logits.cpu(), answers.exit_layers.cpu(), answers.failed.cpu())

    def stream(self, texts: Iterable[Text], batch_size: int = 32) -> Iterator[Answer]:
        """Answer texts as they come, in order, with no more than WINDOW of them in memory; see `__call__`."""
        _refuse_one_text(texts)
        waiting = iter(texts)
        while chunk := list(islice(waiting, WINDOW)):
            yield from self(chunk, batch_size)

    def _told(self, answers: Answers) -> Iterator[Answer]:
        rows = zip(answers.logits.float(), answers.exit_layers.tolist(), answers.failed.tolist(), strict=True)
        for logits, layer, failed in rows:
            told = {"error": "the model's logits are not finite"} if failed else self._one(logits)
            yield {**told, "exit_layer": layer}

    def _one(self, logits: Tensor) -> Answer:
        config = self.model.config
        if config.problem_type == REGRESSION:
            values = logits.tolist()
            return {"value": values[0] if len(values) == 1 else values}
        if config.problem_type == MULTI_LABEL:
            return {"labels": [config.id2label[number] for number in (logits > 0).nonzero().flatten().tolist()]}
        probability, label = logits.softmax(dim=-1).max(dim=-1)
        return {"label": config.id2label[int(label)], "score": probability.item()}


def _refuse_one_text(texts: object) -> None:
    if isinstance(texts, str):
        raise InvalidInput("a predictor takes a list of texts, got one text")


def _is_text(text: object) -> bool:
    if isinstance(text, (tuple, list)):
        return len(text) == 2 and all(isinstance(part, str) for part in text)
    return isinstance(text, str)
