"""Similarity of the tokens of a text by layer: do deep layers need all of them?

Kong et al., "Accelerating Inference for Pretrained Language Models by Unified Multi-Perspective Early Exiting", COLING
2022, figure 1 and section 1: the cosine similarity between the tokens of each layer. What is high by all pairs of a
text's tokens is redundant, the paper argues, and lets tokens exit as well (`offramp.model.token_exit`).

Differs from the figure in two ways. Special tokens are left out, since their states are unlike those of words in some
layers and the figure does not tell whether it has them. And the tokens of different texts are compared, too: states of
a deep layer can lie in a narrow cone, so that any two are similar (Ethayarajh, "How Contextual are Contextualized Word
Representations?", EMNLP 2019); only what lies above that is due to the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from offramp.data.batching import collate, encode, length_sorted, token_limit
from offramp.data.rows import Text
from offramp.errors import NotApplicable
from offramp.model.exits import encoder_exits
from offramp.model.lexical.classifier import special_token_ids
from offramp.model.modeling import MultiExitModel

BATCH = 16


@dataclass(frozen=True)
class TokenSimilarity:
    """Mean cosine similarities between token states, in -1..1, of the input of the first layer and after K layers.

    Attributes:
        within: (K + 1, N) over all pairs of tokens of a text.
        between: (K + 1,) over all pairs of tokens of two different texts; NaN for a single text.
    """

    within: Tensor
    between: Tensor


@torch.inference_mode()
def token_similarity(
    model: MultiExitModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[Text]
) -> TokenSimilarity:
    """Run a model at full depth and compare the states of tokens with each other, layer by layer.

    Padding and special tokens take no part. Texts of fewer than two other tokens are left out, so N may be less than
    the number of texts, in which order does not matter.

    Args:
        model: an encoder of texts without token exit.
        tokenizer: the model's.
        texts: a few dozen are enough.

    Raises:
        NotApplicable: an encoder of images, or one whose tokens leave between layers.
    """
    if model.main_input_name != "input_ids":
        raise NotApplicable("this encoder reads images, and token similarity is of texts")
    if model.config.token_exit is not None:
        raise NotApplicable("this model has token exit, so its layers do not have the same tokens")
    rows = encode(tokenizer, texts, token_limit(tokenizer, model.config.backbone))
    special = torch.tensor(special_token_ids(tokenizer))
    was_training = model.training
    model.eval()
    sums, counts = [], []
    for numbers in length_sorted(rows, BATCH):
        batch = collate([rows[number] for number in numbers], model.config.pad_token_id)
        words = batch["attention_mask"].bool() & ~torch.isin(batch["input_ids"], special)  # (B, T)
        states: list[Tensor] = []
        encoder_exits(model, {name: value.to(model.device) for name, value in batch.items()}, states=states)
        sums.append(torch.stack([direction_sums(state.cpu(), words) for state in states]))  # (K + 1, B, D + 1)
        counts.append(words.sum(dim=-1))
    model.train(was_training)
    return compare_directions(torch.cat(sums, dim=1), torch.cat(counts))


def direction_sums(states: Tensor, mask: Tensor) -> Tensor:
    """Return the sum of each text's token directions and, last, of their squared lengths (1, or 0 for a state of 0).

    Args:
        states: (B, T, D).
        mask: (B, T) bool, True for the tokens that count.

    Returns:
        (B, D + 1) float64. Of all cosine similarities of pairs these sums are enough.
    """
    directions = F.normalize(states.double(), dim=-1) * mask.unsqueeze(-1)
    return torch.cat((directions.sum(dim=1), directions.square().sum(dim=(1, 2)).unsqueeze(-1)), dim=-1)


def compare_directions(sums: Tensor, counts: Tensor) -> TokenSimilarity:
    """Return the mean similarities from `direction_sums` (K + 1, N, D + 1) of texts of so many tokens (N,)."""
    paired = counts > 1
    directions, lengths, tokens = sums[:, paired, :-1], sums[:, paired, -1], counts[paired].double()
    squares = directions.square().sum(dim=-1)  # (K + 1, N) all ordered pairs of a text, and each token with itself
    within = (squares - lengths) / (tokens * (tokens - 1))
    others = tokens.sum().square() - tokens.square().sum()
    between = (directions.sum(dim=1).square().sum(dim=-1) - squares.sum(dim=-1)) / others
    return TokenSimilarity(within, between)
