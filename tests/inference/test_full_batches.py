"""Full batches at every exit: rows in torch fly as they do alone; how many rows a batch begins with."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from offramp.early_exit.loop import run
from offramp.inference.flight import Runner
from offramp.inference.runners import rows_by_stage
from offramp.inference.torch_engine import TorchEngine
from offramp.inference.torch_flight import TorchRunner
from offramp.policies.confidence import Entropy
from offramp.policies.replay import scores
from offramp.types.operating_point import Measured, OperatingPoint
from offramp.types.problem_types import SINGLE_LABEL
from support.contracts import LEAVING, ROWS, build, clear_of_noise, midpoint_near
from support.flights import flown
from support.models import LAYERS, padded


@pytest.mark.parametrize("exits", [{}, {"token_exit": LEAVING, "memory": 0.6}], ids=["bare", "tokens leave, memory"])
def test_rows_fly_in_torch_as_in_the_loop(exits: dict[str, Any]) -> None:
    """In random orders, merges and batches a row leaves where it leaves alone."""
    case = build("bert", SINGLE_LABEL, **exits)
    thresholds = [midpoint_near(score, 0.6) for score in scores(Entropy(), case.trace)[:-1]]
    point = OperatingPoint({"name": "entropy"}, tuple(thresholds))
    runner: Runner = TorchRunner(TorchEngine(case.model), point)
    assert runner.stages == LAYERS
    flight = runner.start(np.arange(ROWS), case.rows)
    assert flight.tokens.tolist() == [len(row["input_ids"]) for row in case.rows]
    left = flown(flight)
    with torch.inference_mode():
        expected = run(case.model, Entropy(), thresholds, padded(case.model, case.rows))
    checked = clear_of_noise(case, Entropy(), thresholds).numpy()
    assert left.rows.tolist() == list(range(ROWS))
    assert len(set(left.exit_layers.tolist())) == LAYERS
    assert np.array_equal(left.exit_layers[checked], expected.exit_layers.numpy()[checked])
    assert np.allclose(left.logits[checked], expected.logits.numpy()[checked], atol=1e-4)


class Timed:
    """An engine of which nothing runs."""

    name, config, layers = "fake-float32", None, (0, 3, 6)


@pytest.mark.parametrize(
    ("layers", "mean_exit", "rows"),
    [((0, 3, 6), 0.5, 192), ((0, 3, 6), 2.0, 32), ((0, 3, 6), 0.0, 256), ((0, 6), 0.1, 256), ((3, 6), 0.5, 32)],
)
def test_a_call_begins_with_so_many_rows_that_a_batch_reaches_the_first_layer(
    layers: tuple[int, ...], mean_exit: float, rows: int
) -> None:
    """At a mean exit of 0.5 at most one row in six goes on to an exit at layer 3 or later: 6 x 32 rows."""
    measured = Measured("accuracy", 0.9, 0.9, 1.0, mean_exit, 6, 100)
    point = OperatingPoint({"name": "margin"}, (0.5,) * (len(layers) - 1), measured=measured, exit_layers=layers)
    assert rows_by_stage(Timed(), point, 1, 32) == [rows]  # type: ignore[arg-type]
    assert rows_by_stage(Timed(), replace(point, measured=None), 1, 32) == [32]  # type: ignore[arg-type]
    by_exit = [128, 32] if layers[0] == 0 else [32, 32]
    assert rows_by_stage(Timed(), point, 2, 32) == by_exit  # type: ignore[arg-type]
