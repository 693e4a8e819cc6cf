"""Linear models on sparse rows, by L-BFGS over all rows at once.

Liu and Nocedal, "On the Limited Memory BFGS Method for Large Scale Optimization", Mathematical Programming, 1989.

Both products of the sparse matrix are torch's `embedding_bag`, which is several times faster on one core than its CSR
product and runs on every platform.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from offramp.types.problem_types import MULTI_LABEL, REGRESSION

STEPS, HISTORY = 60, 6  # of L-BFGS; the history is pairs of vectors as long as all weights
FLAT = 1e-5  # it stops where no slope is steeper, for losses that are means over the rows


@dataclass(frozen=True)
class SparseRows:
    """A sparse matrix (N, F) as bags of columns.

    Attributes:
        columns: (Z,) of all entries, row by row.
        values: (Z,) float32.
        starts: (N + 1,) index of each row's first entry.
        width: F.
    """

    columns: Tensor
    values: Tensor
    starts: Tensor
    width: int

    def __len__(self) -> int:
        return len(self.starts) - 1

    def times(self, matrix: Tensor) -> Tensor:
        """Return the product with a matrix (F, C), (N, C)."""
        return F.embedding_bag(
            self.columns,
            matrix,
            self.starts,
            mode="sum",
            per_sample_weights=self.values,
            include_last_offset=True,
        )

    def row_numbers(self) -> Tensor:
        """Return the row of each entry, (Z,)."""
        return torch.repeat_interleave(torch.arange(len(self)), self.starts.diff())

    def transposed(self) -> SparseRows:
        """Return the matrix (F, N)."""
        order = self.columns.argsort(stable=True)
        counts = self.columns.bincount(minlength=self.width)
        return SparseRows(self.row_numbers()[order], self.values[order], _starts(counts), len(self))

    def select(self, rows: Tensor) -> SparseRows:
        """Return some rows, in their order."""
        lengths = self.starts.diff()[rows]
        starts = _starts(lengths)
        shift = torch.repeat_interleave(self.starts[rows] - starts[:-1], lengths)
        entries = torch.arange(len(shift)) + shift
        return SparseRows(self.columns[entries], self.values[entries], starts, self.width)


def bags(columns: Tensor, values: Tensor, lengths: Tensor, width: int) -> SparseRows:
    """Return the matrix of entries that are in the order of their rows, which have `lengths` entries."""
    return SparseRows(columns, values, _starts(lengths), width)


def solve(
    rows: SparseRows,
    dense: Tensor,
    targets: Tensor,
    problem_type: str,
    penalty: float,
    start: Tensor | None = None,
    on_step: Callable[[], object] = lambda: None,
) -> Tensor:
    """Return the parameters with the least mean loss + penalty / 2 x sum of squared weights, (F + D + 1, C).

    They are the weights of the sparse features and of the dense ones, and the bias, which has no penalty. The loss is
    the cross-entropy, of several labels the sum of binary ones, of a regression half the squared error.

    Args:
        rows: the sparse features (N, F).
        dense: further features (N, D).
        targets: (N, C) probabilities of the classes, 0 to 1 for each of several labels, or values.
        problem_type: as transformers names it.
        penalty: above 0.
        start: parameters; None = zeros.
        on_step: called after each computation of the loss.
    """
    columns, width = rows.transposed(), rows.width
    parameters = torch.zeros(width + dense.shape[1] + 1, targets.shape[1]) if start is None else start.clone()
    parameters.grad = torch.zeros_like(parameters)
    optimizer = torch.optim.LBFGS(
        [parameters],
        max_iter=STEPS,
        max_eval=2 * STEPS,
        history_size=HISTORY,
        tolerance_grad=FLAT,
        tolerance_change=1e-9,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        loss, slopes = _loss(logits_of(parameters, rows, dense), targets, problem_type)
        assert parameters.grad is not None
        parameters.grad[:width] = columns.times(slopes)
        parameters.grad[width:-1] = dense.T @ slopes
        parameters.grad[:-1] += penalty * parameters[:-1]
        parameters.grad[-1] = slopes.sum(dim=0)
        on_step()
        return loss + penalty / 2 * parameters[:-1].square().sum()

    with torch.no_grad():
        optimizer.step(closure)  # type: ignore[no-untyped-call]
    return parameters.detach()


def logits_of(parameters: Tensor, rows: SparseRows, dense: Tensor) -> Tensor:
    """Return the logits (N, C) of parameters that `solve` returned."""
    width = rows.width
    return rows.times(parameters[:width]) + dense @ parameters[width:-1] + parameters[-1]


def loss_of(logits: Tensor, targets: Tensor, problem_type: str) -> float:
    """Return the mean loss of logits (N, C) over the rows, without a penalty."""
    return float(_loss(logits, targets, problem_type)[0])


def _loss(logits: Tensor, targets: Tensor, problem_type: str) -> tuple[Tensor, Tensor]:
    """Return the mean loss over the rows and its slopes in the logits, (N, C)."""
    count = len(logits)
    if problem_type == REGRESSION:
        return (logits - targets).square().sum() / 2 / count, (logits - targets) / count
    if problem_type == MULTI_LABEL:
        loss = F.binary_cross_entropy_with_logits(logits, targets, reduction="sum") / count
        return loss, (logits.sigmoid() - targets) / count
    log_probabilities = logits.log_softmax(dim=1)
    return -(targets * log_probabilities).sum() / count, (log_probabilities.exp() - targets) / count


def _starts(lengths: Tensor) -> Tensor:
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(dim=0)])
