"""Rows that fly in random orders, merges and batches."""

import numpy as np

from offramp.inference.flight import Flight, LeftRows


def flown(flight: Flight, seed: int = 0, largest: int = 9) -> LeftRows:
    """Advance the rows of a flight until all have left, in order of their numbers.

    Before each stage all rows are merged and shuffled, and cut into batches of 1 to `largest` rows; some wait for rows
    that are still behind.
    """
    generator = np.random.default_rng(seed)
    waiting, left = [flight], list[LeftRows]()
    while waiting:
        stage = generator.choice([one.stage for one in waiting])
        together = [one for one in waiting if one.stage == stage]
        waiting = [one for one in waiting if one.stage != stage]
        merged = together[0].merge(together[1:]) if len(together) > 1 else together[0]
        order = generator.permutation(len(merged.rows))
        cuts = np.cumsum(generator.integers(1, largest + 1, len(order)))
        for positions in np.split(order, cuts[cuts < len(order)]):
            leaving, onward = merged.take(positions).advance()
            left += [] if leaving is None else [leaving]
            waiting += [] if onward is None else [onward]
    return joined(left)


def joined(left: list[LeftRows]) -> LeftRows:
    """Rows that left, in order of their numbers; none twice."""
    fields = [(some.rows, some.logits, some.exit_layers, some.failed) for some in left]
    columns = [np.concatenate(column) for column in zip(*fields, strict=True)]
    order = columns[0].argsort(kind="stable")
    assert (np.diff(columns[0][order]) > 0).all()
    return LeftRows(*(column[order] for column in columns))
