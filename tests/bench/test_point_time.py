"""A point's time on a clock that only work moves."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bench.test_cost_table import Clock, Priced
from offramp.bench import timer
from offramp.bench.cost_table import measure_costs
from offramp.bench.point_time import time_point
from offramp.data.batching import length_sorted
from offramp.errors import InvalidInput
from offramp.inference.predictor import Predictor
from offramp.types.operating_point import OperatingPoint
from offramp.types.point_times import Spread
from support.models import balanced, text_rows, texts, tiny_model, tiny_tokenizer


def test_a_point_takes_what_its_exits_take_and_more_where_batches_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exit takes 2 ms, a layer 10 and the embedding 3; the point reads the exits at layers 1 and 4."""
    clock = Clock()
    monkeypatch.setattr(timer, "time", clock)
    model = balanced(tiny_model(exit_layers=[1, 3, 4]))
    engine: Any = Priced(clock, dict.fromkeys(model.layers, 0.0), model)
    asked, rows = texts(8), text_rows(8)
    every = torch.cat(
        [engine.eager.all_exits({k: torch.tensor([v]) for k, v in row.items()}).logits for row in rows], 1
    )
    margins = every[0].softmax(dim=-1).topk(2).values  # (N, 2) at layer 1
    differences = margins[:, 0] - margins[:, 1]
    middle = differences.sort().values[3:5].mean().item()  # four of eight leave there
    point = OperatingPoint({"name": "margin"}, (middle,), exit_layers=(1, 4))
    table = measure_costs(engine, rows, rounds=1)
    times = time_point(Predictor(engine, tiny_tokenizer(), point), asked, table, rounds=2)
    mean = (4 * (3 + 10 + 2) + 4 * (3 + 40 + 2 * 2)) / 8
    assert (times.texts, times.batch_size, times.mean_exit) == (8, 1, 2.5)
    assert (times.expected, times.expected_full) == (pytest.approx(mean), pytest.approx(3 + 40 + 2 * 2))
    lengths = torch.tensor([len(row["input_ids"]) for row in rows])
    layers = torch.where(differences >= middle, 1, 4)
    assert (times.rows_a_layer, times.tokens_a_layer) == (1.0, pytest.approx(float(lengths @ layers) / 20))
    assert times.tokens == lengths.double().mean()
    measured = (*times.batches, *times.call, *times.full)
    assert measured == pytest.approx((mean,) * 4 + (47,) * 2)
    assert times.tokenizer == (0, 0)  # on this clock
    table = measure_costs(engine, rows, batch_size=2, rounds=1)
    pairs = time_point(Predictor(engine, tiny_tokenizer(), point), asked, table, rounds=1)
    order = [number for numbers in length_sorted(rows, 2) for number in numbers]
    leaves = [bool(differences[number] >= middle) for number in order]
    cuts = sum(one != other for one, other in zip(leaves[::2], leaves[1::2], strict=True))
    assert cuts
    assert pairs.rows_a_layer == 20 / sum(
        4 if not (one and other) else 1 for one, other in zip(leaves[::2], leaves[1::2], strict=True)
    )
    assert pairs.batches == (pytest.approx(mean + 0.5 * cuts / 8),)  # of a row that goes on alone


def test_one_worker_a_point_and_texts_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    engine: Any = Priced(Clock(), {4: 0.0, 1: 0.0}, tiny_model(exit_layers=[1, 4]))
    table = measure_costs(engine, text_rows(2), rounds=1)
    with pytest.raises(InvalidInput, match="takes a point, one worker and texts, got None, 1 workers, 2"):
        time_point(Predictor(engine, tiny_tokenizer()), texts(2), table)


def test_a_spread_is_the_middle_and_the_ends() -> None:
    assert Spread.of([4.0, 1.0, 2.0], over=2.0) == Spread(1.0, 0.5, 2.0)
    assert Spread.of([4.0, 1.0]) == Spread(2.5, 1.0, 4.0)
