"""Fit the lexical exit: TF-IDF of token n-grams and a linear classifier on them.

It learns the labels, mixed with the last exit's softened probabilities (Hinton et al., "Distilling the Knowledge in a
Neural Network", 2015, arXiv:1503.02531) where rows that are held out inside the fit say that this helps. On the same
rows the penalty of the weights and the temperature of the logits are chosen.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from offramp.data.batching import Tokens, collate, encode, length_sorted, token_limit
from offramp.data.examples import Examples
from offramp.errors import InvalidInput
from offramp.model.lexical.classifier import (
    LARGEST,
    LARGEST_PROJECTED,
    LARGEST_SQUARE,
    LARGEST_STEP,
    SQUARE_UNIT,
    LexicalClassifier,
    special_token_ids,
)
from offramp.model.lexical.fitted_rows import token_hashes
from offramp.model.modeling import MultiExitModel
from offramp.training.sparse_linear import SparseRows, bags, logits_of, loss_of, solve
from offramp.training.token_vectors import TokenVectors, token_vectors
from offramp.types.problem_types import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from offramp.types.trace import check_labels

PENALTIES = (0.25, 0.0625, 0.0156)  # over the number of rows, from the strongest; one is chosen
SOFT_SHARE, SOFT_TEMPERATURE = 0.5, 2.0  # of the last exit's probabilities in the targets
HELD_OUT = 5  # one row in so many chooses it
TEMPERATURES = (0.05, 20.0)
BATCH, ENCODER_BATCH = 1024, 64  # rows whose n-grams are hashed at once, rows that the encoder reads at once

log = logging.getLogger("offramp")


@torch.no_grad()
def fit_lexical(model: MultiExitModel, tokenizer: PreTrainedTokenizerBase, examples: Examples) -> None:
    """Fit a model's lexical exit on labelled texts, in place; the configuration gets the number of rows.

    Args:
        model: with a lexical exit; the other exits are trained. In eval mode afterwards.
        tokenizer: the encoder's.
        examples: rows that neither choose nor certify a threshold, and on which nothing is reported.

    Raises:
        InvalidInput: the model has no lexical exit, there are no rows, or the labels do not fit the model.
    """
    classifier = model.lexical_exit
    if classifier is None:
        raise InvalidInput("the model has no lexical exit: build it with lexical=LexicalExit()")
    if not len(examples):
        raise InvalidInput("there are no rows to fit the lexical exit on")
    targets = targets_of(examples, classifier)
    rows = encode(tokenizer, examples.texts, token_limit(tokenizer, model.config.backbone))
    soft = None if classifier.problem_type == REGRESSION else _soft_targets(model.eval(), rows)
    device = classifier.table.device
    classifier.cpu()  # where the fit runs; the soft targets come from where the model is
    set_special_ids(classifier, tokenizer)
    ids = [row["input_ids"] for row in rows]
    buckets, lengths = hashed(classifier, ids)
    used, columns = torch.unique(buckets, return_inverse=True)
    tokens = torch.unique(torch.tensor([token for row in ids for token in row]))
    paired = any(not isinstance(text, str) for text in examples.texts)
    embedding = model.get_input_embeddings().weight.detach().cpu()
    vectors = token_vectors(classifier, embedding, used, tokens, paired)
    _fit(classifier, used, bags(columns, torch.ones(len(columns)), lengths, len(used)), vectors, targets, soft)
    classifier.fitted_rows = torch.unique(token_hashes(ids))
    classifier.setting = replace(classifier.setting, fitted_rows=len(classifier.fitted_rows))
    classifier.to(device)
    model.config.lexical = classifier.setting.to_data()


def set_special_ids(classifier: LexicalClassifier, tokenizer: PreTrainedTokenizerBase) -> None:
    """Let a classifier know the tokens that are no words."""
    classifier.special_ids.copy_(torch.tensor(special_token_ids(tokenizer)))


def hashed(classifier: LexicalClassifier, ids: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Return the buckets of all n-grams of all rows, (Z,), row by row, and their number in each row, (N,)."""
    gathered: list[Tensor] = [torch.empty(0)] * len(ids)
    for numbers in length_sorted([{"input_ids": row} for row in ids], BATCH):
        batch = collate([{"input_ids": ids[number]} for number in numbers], 0)
        buckets, weights = classifier.features(batch["input_ids"], batch["attention_mask"])
        for number, row, counted in zip(numbers, buckets, weights > 0, strict=True):
            gathered[number] = row[counted]
    return torch.cat(gathered), torch.tensor([len(row) for row in gathered])


def targets_of(examples: Examples, classifier: LexicalClassifier) -> Tensor:
    """Return the labels as targets (N, C): one-hot for a single label.

    Raises:
        InvalidInput: the labels do not fit the classifier.
    """
    if examples.problem_type != classifier.problem_type:
        raise InvalidInput(f"the labels are of {examples.problem_type}, the model is of {classifier.problem_type}")
    labels, outputs = torch.tensor(examples.labels), len(classifier.bias)
    check_labels(labels, examples.problem_type, len(examples), outputs)
    if examples.problem_type == SINGLE_LABEL:
        return F.one_hot(labels.long(), outputs).float()
    return labels.float().view(len(labels), outputs)


def _soft_targets(model: MultiExitModel, rows: list[Tokens]) -> Tensor:
    """Return the last exit's softened probabilities on the rows, (N, C)."""
    logits = torch.empty(len(rows), model.config.num_labels)
    for numbers in tqdm(
        length_sorted(rows, ENCODER_BATCH), desc="soft labels", unit="batch", disable=None, leave=False
    ):
        batch = collate([rows[number] for number in numbers], model.config.pad_token_id)
        inputs = {name: values.to(model.device) for name, values in batch.items()}
        logits[numbers] = model.all_exits(inputs).logits[-1].float().cpu()
    if not logits.isfinite().all():
        raise InvalidInput("the last exit's logits are not finite: the lexical exit cannot learn from them")
    softened = logits / SOFT_TEMPERATURE
    return softened.sigmoid() if model.config.problem_type == MULTI_LABEL else softened.softmax(dim=1)


def _fit(
    classifier: LexicalClassifier,
    used: Tensor,
    counts: SparseRows,
    vectors: TokenVectors,
    targets: Tensor,
    soft: Tensor | None,
) -> None:
    """Fill a classifier's table, factors and bias.

    Args:
        classifier: with the ids of special tokens.
        used: (F,) the bucket of each column.
        counts: a 1 for each n-gram of each row, (N, F).
        vectors: of the tokens.
        targets: (N, C).
        soft: soft ones (N, C), or None.
    """
    problem_type = classifier.problem_type
    squares = _squared_idf(counts)
    rows = _tfidf(counts, squares)
    dense = vectors.features(rows)
    center, spread = torch.zeros(targets.shape[1]), torch.ones(targets.shape[1])
    if problem_type == REGRESSION:
        center, spread = targets.mean(dim=0), targets.std(dim=0, correction=0).clamp(min=1e-6)
        targets = (targets - center) / spread
    with tqdm(desc="fit the lexical exit", unit="step", disable=None, leave=False) as bar:
        chosen = _choose(rows, dense, targets, soft, problem_type, bar)
        mixed = targets if soft is None else torch.lerp(targets, soft, chosen.soft_share)
        parameters = solve(rows, dense, mixed, problem_type, chosen.penalty / len(rows), chosen.parameters, bar.update)
    weights, bias = vectors.folded(parameters / chosen.temperature, rows.width)
    weights, bias = weights * spread, bias * spread + center
    _store_weights(classifier, used, squares, weights, rows.times(weights))
    classifier.scales[2] = _scale(bias, 2**24 - 1)
    classifier.bias.copy_((bias / classifier.scales[2]).round())


def _squared_idf(counts: SparseRows) -> Tensor:
    """Return the squared idf of each column in the classifier's unit, (F,) whole numbers.

    The idf is scikit-learn's: 1 + log((1 + N) / (1 + rows with the n-gram)).
    """
    distinct = torch.unique(counts.columns * len(counts) + counts.row_numbers())
    frequency = (distinct // len(counts)).bincount(minlength=counts.width)
    idf = 1 + torch.log((1 + len(counts)) / (1 + frequency))
    return (idf.square() * SQUARE_UNIT).round().clamp(SQUARE_UNIT, LARGEST_SQUARE)


def _tfidf(counts: SparseRows, squares: Tensor) -> SparseRows:
    """Return each n-gram's idf over its row's norm, as the classifier computes them."""
    values, row = squares[counts.columns] / SQUARE_UNIT, counts.row_numbers()
    norms = torch.zeros(len(counts)).index_add_(0, row, values).sqrt()
    return replace(counts, values=values.sqrt() / norms[row])


@dataclass(frozen=True)
class _Choice:
    """What is chosen on rows that are held out, and the parameters of the other rows."""

    penalty: float
    soft_share: float = 0.0
    temperature: float = 1.0
    parameters: Tensor | None = None
    loss: float = math.inf


def _choose(
    rows: SparseRows, dense: Tensor, targets: Tensor, soft: Tensor | None, problem_type: str, bar: tqdm[Any]
) -> _Choice:
    """Return the penalty and the share of soft targets with the least loss on rows that are held out."""
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    held_out, others = order[::HELD_OUT], order[torch.arange(len(order)) % HELD_OUT != 0]
    if not len(others):
        return _Choice(PENALTIES[0])
    fit, check, answers = rows.select(others), rows.select(held_out), targets[held_out]

    def tried(penalty: float, soft_share: float, start: Tensor | None) -> _Choice:
        mixed = targets if soft is None else torch.lerp(targets, soft, soft_share)
        parameters = solve(
            fit, dense[others], mixed[others], problem_type, penalty / len(fit), start, on_step=bar.update
        )
        logits = logits_of(parameters, check, dense[held_out])
        temperature = 1.0 if problem_type == REGRESSION else fit_temperature(logits, answers, problem_type)
        return _Choice(
            penalty, soft_share, temperature, parameters, loss_of(logits / temperature, answers, problem_type)
        )

    best = latest = tried(PENALTIES[0], 0.0, None)
    for penalty in PENALTIES[1:]:
        latest = tried(penalty, 0.0, latest.parameters)
        best = min(best, latest, key=lambda choice: choice.loss)
    if soft is not None:
        best = min(best, tried(best.penalty, SOFT_SHARE, best.parameters), key=lambda choice: choice.loss)
    log.debug(
        "lexical exit: penalty %g, soft share %g, temperature %.3g", best.penalty, best.soft_share, best.temperature
    )
    return best


def fit_temperature(logits: Tensor, targets: Tensor, problem_type: str) -> float:
    """Return the temperature with the least loss of logits (N, C), from 0.05 to 20, by ternary search."""
    low, high = map(math.log, TEMPERATURES)
    for _ in range(30):  # each round keeps two thirds of the interval
        third = (high - low) / 3
        lower, upper = (
            loss_of(logits / math.exp(value), targets, problem_type) for value in (low + third, high - third)
        )
        low, high = (low, high - third) if lower < upper else (low + third, high)
    return math.exp((low + high) / 2)


def _store_weights(
    classifier: LexicalClassifier, used: Tensor, squares: Tensor, weights: Tensor, logits: Tensor
) -> None:
    """Round weights (F, C) of the buckets `used` to the classifier's integers.

    Where the table is narrower than the outputs, it holds the weights' projections on the directions in which the
    logits (N, C) of the rows vary most.
    """
    projected_scale = 1.0
    if classifier.factors is not None:
        _, directions = torch.linalg.eigh(logits.double().T @ logits.double())  # from the least variance
        directions = directions[:, -classifier.rank :].float()  # (C, R)
        factor_scale = max(_scale(directions, LARGEST), _scale(directions.norm(dim=1), 1000))
        classifier.factors.copy_((directions / factor_scale).round().T)
        weights, logits = weights @ directions, logits @ directions
        projected_scale = _scale(2 * logits, LARGEST_PROJECTED)  # other rows may have logits twice as large
        classifier.scales[1] = factor_scale * projected_scale
    entries = weights * (squares / SQUARE_UNIT).sqrt().unsqueeze(1)
    unit = _scale(entries, LARGEST * LARGEST_STEP)
    peaks = entries.abs().amax(dim=1) / (unit * LARGEST)
    steps = peaks.clamp(min=1).log2().ceil().exp2()  # (F,)
    classifier.scales[0] = unit / projected_scale
    for buffer, unused in ((classifier.table, 0), (classifier.steps, 1), (classifier.squares, 0)):
        buffer.fill_(unused)
    classifier.table[used] = (entries / (unit * steps).unsqueeze(1)).round().to(torch.int8)
    classifier.steps[used, 0] = steps.to(torch.uint8)
    classifier.squares[used, 0] = squares.to(torch.int16)


def _scale(values: Tensor, largest: int) -> float:
    """Return the least power of two that brings all values to at most `largest` when they are divided by it."""
    peak = float(values.abs().max()) if values.numel() else 0.0
    return 2.0 ** math.ceil(math.log2(peak / largest)) if peak > 0 else 1.0
