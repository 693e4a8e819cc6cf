"""Texts that make a served model run more layers: synonyms searched for by somebody who sees answers and exits.

The search of `attack_search.py` with its aim to slow down, against the int8 graph that the server runs, at one point of
its ladder. What it sees is what an answer of the server with details has: probabilities and the layer after which the
row left. Texts stay in the runs: they are made of rows of a data set.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

from attack import LEAST_SIMILARITY, Known, in_batches, joined, meaning
from attack_search import SearchAnswers, Slow, Words, read_synonyms, search
from offramp.data.batching import encode, token_limit
from offramp.data.padding import padded
from offramp.inference.answer_rows import RowPlan, answer_rows
from offramp.inference.engine import Engine
from offramp.inference.load_engine import load_engine
from offramp.model.default_encoder import default_encoder
from offramp.model.hub import load_config, load_encoder, load_tokenizer
from offramp.model.points import load_points
from offramp.types.operating_point import OperatingPoint

BATCH_ROWS = 32


@dataclass(frozen=True)
class Victim:
    """A model at a point, as its server runs it.

    Attributes:
        engine: runs the exported graph.
        point: at which it answers.
        tokenizer: of the model.
        limit: tokens of a text.
    """

    engine: Engine
    point: OperatingPoint
    tokenizer: Any
    limit: int

    @classmethod
    def load(cls, folder: Path, name: str) -> Victim:
        """Load a folder's int8 graph at a saved point."""
        point, tokenizer = load_points(folder)[name], load_tokenizer(folder)
        limit = token_limit(tokenizer, load_config(folder).backbone)
        return cls(load_engine(folder, "onnx-int8", point, threads=1), point, tokenizer, limit)

    def __call__(self, texts: Sequence[Words]) -> SearchAnswers:
        """Return what the server would answer."""
        rows = encode(self.tokenizer, joined(None, texts), self.limit)
        logits, layers = [], []
        for start in range(0, len(rows), BATCH_ROWS):
            part = rows[start : start + BATCH_ROWS]
            answers = answer_rows(
                self.engine, padded(part, self.tokenizer.pad_token_id), [RowPlan(self.point)] * len(part)
            )
            logits.append(torch.from_numpy(answers.logits))
            layers.append(torch.from_numpy(answers.exit_layers))
        return SearchAnswers(torch.cat(logits).softmax(dim=-1), torch.cat(layers))


def slowed(victim: Victim, texts: Sequence[str], data: Path, file: Path, minutes: float) -> list[str] | None:
    """Return each text as the search leaves it; None where the time is up before all are done.

    Args:
        victim: which is slowed down.
        texts: to begin with.
        data: folder of the data sets, for the synonyms.
        file: of the texts found so far, a JSON string a line; what is there is taken up.
        minutes: for which new ones are searched.
    """
    found = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    if len(found) < len(texts):
        synonyms = read_synonyms(data / "word_lists", frozenset(ENGLISH_STOP_WORDS))
        encoder = load_encoder(default_encoder()).to(torch.bfloat16).eval()
        meanings = Known(partial(in_batches, partial(meaning, encoder), victim.tokenizer, victim.limit))
        end = time.monotonic() + 60 * minutes
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a") as lines:
            for text in texts[len(found) :]:
                if time.monotonic() > end:
                    return None
                found.append(_slowed(victim, text, meanings, synonyms))
                lines.write(json.dumps(found[-1]) + "\n")
                lines.flush()
    return found


def _slowed(victim: Victim, text: str, meanings: Known, synonyms: dict[str, list[str]]) -> str:
    start = tuple(text.split())
    first = victim([start])
    depth = max(victim.engine.config.layers)
    if first.exit_layers.item() == depth:
        return text

    def similar(texts: Sequence[Words]) -> torch.Tensor:
        return meanings(joined(None, texts)) @ meanings(joined(None, [start]))[0]

    goal = Slow(int(first.answers.item()), depth)
    result = search(start, goal, victim, similar, synonyms, LEAST_SIMILARITY)
    meanings.known.clear()
    return " ".join(result.words)
