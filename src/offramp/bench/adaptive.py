"""Early exit as a contestant: `Predictor` with an engine at an operating point."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from offramp.bench.contestant import Contestant, TextAnswers, TextRun
from offramp.data.rows import Text
from offramp.inference.engine import Engine
from offramp.inference.load_engine import load_engine
from offramp.inference.predictor import Predictor
from offramp.inference.torch_engine import TorchEngine
from offramp.model.config import MultiExitConfig
from offramp.model.graph_config import GraphConfig
from offramp.model.modeling import MultiExitModel
from offramp.types.operating_point import OperatingPoint
from offramp.types.problem_types import MULTI_LABEL, REGRESSION

FULL = "full"
"""The name of an engine's full depth among its operating points."""


def engine_loader(
    folder: str | os.PathLike[str], name: str, model: MultiExitModel | None = None
) -> Callable[[int], Engine]:
    """Return what loads an engine with a number of threads, once for each number.

    Args:
        folder: of the model.
        name: of ENGINES.
        model: the model, which torch then does not load again.
    """

    @cache
    def load(threads: int) -> Engine:
        if name == "torch" and model is not None:
            return TorchEngine(model, threads)
        return load_engine(folder, name, threads=threads)

    return load


def adaptive(
    engine: str,
    load: Callable[[int], Engine],
    tokenizer: PreTrainedTokenizerBase,
    points: Mapping[str, OperatingPoint | None],
) -> list[Contestant]:
    """Return the contestants of one engine, one a point; they share the engine.

    Args:
        engine: a name of ENGINES.
        load: see `engine_loader`.
        tokenizer: the model's.
        points: by name; None = full depth.
    """

    def contestant(name: str, point: OperatingPoint | None) -> Contestant:
        def load_run(threads: int, workers: int) -> TextRun:
            predictor = Predictor(load(threads), tokenizer, point, workers)

            def run(texts: Sequence[Text], batch_size: int) -> TextAnswers:
                if torch.get_num_threads() != threads:  # of the whole process
                    torch.set_num_threads(threads)
                return to_text_answers(predictor(texts, batch_size), predictor.engine.config)

            return run

        return Contestant(name, "full-depth" if point is None else "adaptive", engine, load_run)

    return [contestant(name, point) for name, point in points.items()]


def to_text_answers(answers: Sequence[Mapping[str, Any]], config: MultiExitConfig | GraphConfig) -> TextAnswers:
    """Return a predictor's answers as `TextAnswers`."""
    layers = torch.tensor([answer.get("exit_layer", config.exit_layers[-1]) for answer in answers])
    failed = [number for number, answer in enumerate(answers) if "error" in answer]
    width, label2id = config.num_labels, config.label2id
    logits: Tensor
    if config.problem_type == REGRESSION:
        values = [answer.get("value", [0.0] * width) for answer in answers]
        logits = torch.tensor(values, dtype=torch.float32).reshape(len(answers), width)
    elif config.problem_type == MULTI_LABEL:
        logits = torch.full((len(answers), width), -1.0)
        for number, answer in enumerate(answers):
            logits[number, [label2id[label] for label in answer.get("labels", ())]] = 1.0
    else:
        logits = torch.zeros(len(answers), width)
        chosen = [label2id[answer["label"]] if "label" in answer else 0 for answer in answers]
        logits[torch.arange(len(answers)), chosen] = 1.0
    logits[failed] = float("nan")
    return TextAnswers(logits, layers)
