"""The lexical exit: a linear classifier on hashed n-grams of token ids.

It is TF-IDF with a linear classifier: logits = (sum over the n-grams of idf x weights) / (norm of the idf) + bias, with
the hashing of Weinberger et al., "Feature Hashing for Large Scale Multitask Learning", ICML 2009 (without their sign).

All numbers are integers times a power of two, as in fixed point. Their sums are exact in float32 up to 1,024 n-grams of
a row, in any order of addition, so that logits do not depend on batch, padding or engine, to the last bit. A change of
the model's dtype leaves them as they are: the scales stay in float32, whose exponents float16 does not reach.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offramp.model.lexical.config import MAX_RANK, LexicalExit
from offramp.types.problem_types import MULTI_LABEL, REGRESSION

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MULTIPLIER = 4093  # of the hash; a prime; times a bucket it stays below 2^31
NO_TOKEN = -1  # stands for padding, and for a special token that a tokenizer does not have
BOUNDARY = 0  # stands for special tokens, padding, and what lies before the first token
SPECIAL_TOKENS = ("sep_token", "cls_token", "bos_token", "eos_token", "pad_token", "mask_token")
LARGEST = 2**7 - 1  # of the entries of table and factors
LARGEST_STEP = 2**7  # 1,024 n-grams x LARGEST x LARGEST_STEP are below 2^24
LARGEST_SQUARE, SQUARE_UNIT = 2**14 - 1, 64  # of the squared idf; the unit is a power of 4, whose root is exact
LARGEST_PROJECTED = 2**10 - 1  # MAX_RANK of them have a norm below 2^14, and a column of factors one below 2^10


@final
class LexicalClassifier(nn.Module):
    """Logits from token ids alone; zeros until it is fitted (`offramp.training.lexical`).

    Args:
        setting: with numbers for buckets and rank, see `LexicalExit.resolved`.
        num_labels: C of the logits.
        problem_type: as transformers names it.

    Buffers, none of which is trained by an optimiser:
        table: (buckets, rank) int8; the weights times the idf, in units of the row's step.
        steps: (buckets, 1) uint8, powers of two.
        squares: (buckets, 1) int16, the squared idf in units of 1 / 64.
        factors: (rank, C) int8, where the rank is below C.
        bias: (C,) int32.
        scales: (3,) float32 powers of two, whatever the model's dtype: of the table, of the factors and of the bias.
        special_ids: (6,) int64, token ids of SPECIAL_TOKENS, -1 where the tokenizer has none.
        fitted_rows: (F,) int64, sorted hashes of the token ids of the rows that fitted it.
    """

    table: Tensor
    steps: Tensor
    squares: Tensor
    factors: Tensor | None
    bias: Tensor
    scales: Tensor
    special_ids: Tensor
    fitted_rows: Tensor

    def __init__(self, setting: LexicalExit, num_labels: int, problem_type: str) -> None:
        super().__init__()
        if setting.buckets is None or setting.rank is None:
            raise ValueError(f"the sizes of a lexical exit must be numbers, see LexicalExit.resolved; got {setting}")
        self.setting, self.problem_type = setting, problem_type
        self.ngrams, self.buckets, self.rank = setting.ngrams, setting.buckets, setting.rank
        assert self.rank == num_labels or self.rank <= MAX_RANK
        self.register_buffer("table", torch.zeros(self.buckets, self.rank, dtype=torch.int8))
        self.register_buffer("steps", torch.ones(self.buckets, 1, dtype=torch.uint8))
        self.register_buffer("squares", torch.zeros(self.buckets, 1, dtype=torch.int16))
        factors = None if self.rank == num_labels else torch.zeros(self.rank, num_labels, dtype=torch.int8)
        self.register_buffer("factors", factors)
        self.register_buffer("bias", torch.zeros(num_labels, dtype=torch.int32))
        self.register_buffer("scales", torch.ones(3, dtype=torch.float32))
        self.register_buffer("special_ids", torch.full((len(SPECIAL_TOKENS),), -1))
        self.register_buffer("fitted_rows", torch.zeros(setting.fitted_rows, dtype=torch.long))

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Return logits (B, C) in float32.

        Args:
            input_ids: (B, T).
            attention_mask: (B, T), 0 for padding, of any dtype; None = all tokens are real.
        """
        buckets, weights = self.features(input_ids, attention_mask)  # (B, n T)
        weights = weights.unsqueeze(1)  # (B, 1, n T)
        steps, squares = F.embedding(buckets, self.steps).float(), F.embedding(buckets, self.squares).float()
        sums = torch.bmm(weights * steps.mT, F.embedding(buckets, self.table).float())  # (B, 1, R)
        squared = torch.bmm(weights, squares).clamp(min=SQUARE_UNIT)  # (B, 1, 1); a squared idf is at least 1
        root = squared.double().sqrt().float()  # torch's root of a float32 may be off by one digit, others' is not
        scales = self.scales.float()
        logits = sums / (root / (scales[0] * math.sqrt(SQUARE_UNIT)))  # which rounds once: these are powers of two
        if self.factors is not None:
            projected = logits.round().clamp(-LARGEST_PROJECTED, LARGEST_PROJECTED)
            logits = projected @ self.factors.float() * scales[1]
        return logits.squeeze(1) + self.bias.float() * scales[2]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LexicalClassifier:
        """Move the buffers, as a module does; the scales keep their dtype."""
        scales = self.scales
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.scales.dtype != scales.dtype:
            self.scales = scales.to(self.scales.device)
        return self

    def features(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the bucket of each n-gram and its weight, 1 or 0, both (B, n T): first all tokens, then all pairs.

        An n-gram counts if its last token is real and not all its tokens are special; before the first token lies a
        boundary. N-grams that end in the second text of a pair have buckets of their own.
        """
        input_ids = input_ids.long()
        real = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        ids = torch.where(real, input_ids, NO_TOKEN)
        special = (ids.unsqueeze(-1) == self.special_ids).any(dim=-1)  # (B, T)
        words = torch.where(special, BOUNDARY, ids + 1)
        separators = ((ids == self.special_ids[0]) & real).long()
        passed = (separators.cumsum(dim=1, dtype=separators.dtype) - separators).bool()  # a separator lies before
        start = torch.where(passed, words.new_full((), 2 * MULTIPLIER), MULTIPLIER)
        last_tokens = [words]  # then the tokens before them, and so on
        buckets, counted, word = [(start + words) % self.buckets], [words.bool()], words.bool()
        for back in range(1, self.ngrams):
            first = F.pad(words, (back, 0), value=BOUNDARY)[:, :-back]
            hashed = (start + 2 * back * MULTIPLIER + first) % self.buckets
            for token in reversed(last_tokens):
                hashed = (hashed * MULTIPLIER + token) % self.buckets
            last_tokens.append(first)
            word = word | first.bool()
            buckets.append(hashed)
            counted.append(word & real)
        return torch.cat(buckets, dim=1), torch.cat(counted, dim=1).float()

    def certainty(self, logits: Tensor) -> Tensor:
        """Return (B,) the largest probability; of several labels the least sure one's, of a regression 0.

        The logits are at the temperature that was fitted on rows that the fit had not seen.
        """
        logits = logits.float()
        if self.problem_type == REGRESSION:
            return torch.zeros_like(logits[:, 0])
        if self.problem_type == MULTI_LABEL:
            return logits.abs().amin(dim=-1).sigmoid()
        return logits.softmax(dim=-1).amax(dim=-1)


def special_token_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids of SPECIAL_TOKENS, -1 where a tokenizer has none.

    Special tokens that users added are words, and so is the unknown token.
    """
    ids = [getattr(tokenizer, f"{name}_id", None) for name in SPECIAL_TOKENS]
    return [-1 if id is None or id == tokenizer.unk_token_id else id for id in ids]
