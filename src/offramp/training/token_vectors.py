"""The encoder's own token vectors as features of a linear model, and as a part of the weights that it is stored with.

A linear model on the mean of a text's token vectors is one on its tokens, whose weights are vectors times a matrix: so
it costs nothing when it answers. Tokens that are rare in the labelled rows learn from tokens that are like them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from offramp.model.lexical.classifier import LexicalClassifier
from offramp.training.sparse_linear import SparseRows

SIZE = 0.5  # of a vector, on average, where a token's own feature has 1


@dataclass(frozen=True)
class TokenVectors:
    """Vectors of the tokens that have columns in sparse rows, for each text of a pair.

    Attributes:
        columns: of each text, (K,) the columns of its tokens.
        vectors: of each text, (K, D).
    """

    columns: tuple[Tensor, ...]
    vectors: tuple[Tensor, ...]

    def features(self, rows: SparseRows) -> Tensor:
        """Return the sums of the rows' vectors, (N, D) for each text, side by side."""
        sums = [torch.zeros(len(rows), 0)]
        for columns, vectors in zip(self.columns, self.vectors, strict=True):
            number = torch.full((rows.width,), len(columns))  # of the zeros below the vectors
            number[columns] = torch.arange(len(columns))
            mapped = SparseRows(number[rows.columns], rows.values, rows.starts, len(columns) + 1)
            sums.append(mapped.times(torch.cat([vectors, torch.zeros_like(vectors[:1])])))
        return torch.cat(sums, dim=1)

    def folded(self, parameters: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """Return weights (F, C) and bias (C,) that do without the vectors' features.

        Args:
            parameters: of `solve`, (F + all D + 1, C).
            width: F.
        """
        weights = parameters[:width].clone()
        matrices = parameters[width:-1].chunk(max(1, len(self.columns)))  # (D, C) each
        for columns, vectors, matrix in zip(self.columns, self.vectors, matrices, strict=False):
            weights[columns] += vectors @ matrix
        return weights, parameters[-1]


def token_vectors(
    classifier: LexicalClassifier, embedding: Tensor, used: Tensor, ids: Tensor, paired: bool
) -> TokenVectors:
    """Return the vectors of tokens, less their mean, at the columns of their buckets.

    Args:
        classifier: hashes the tokens.
        embedding: (V, D) of the encoder.
        used: (F,) sorted buckets, one for each column.
        ids: (K,) different tokens of the rows.
        paired: the rows have second texts.
    """
    separator = classifier.special_ids[:1]
    words = ids[~torch.isin(ids, classifier.special_ids)]
    if not len(words):
        return TokenVectors((), ())
    rows = embedding[words].float()
    rows = rows - rows.mean(dim=0)
    rows = rows * (SIZE / rows.norm(dim=1).mean().clamp(min=1e-6))
    columns, vectors = [], []
    for prefix in (separator[:0], separator) if paired and separator >= 0 else (separator[:0],):
        texts = torch.cat([prefix.expand(len(words), -1), words.unsqueeze(1)], dim=1)
        buckets = classifier.features(texts)[0][:, len(prefix)].contiguous()  # behind a separator, the second text's
        column = torch.searchsorted(used, buckets).clamp(max=len(used) - 1)
        present = used[column] == buckets
        columns.append(column[present])
        vectors.append(rows[present])
    return TokenVectors(tuple(columns), tuple(vectors))
