"""The simulated batch job of benchmarks/scaling.py: by hand, against its bounds, and what the page says."""

import json
import math
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def model() -> Iterator[ModuleType]:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    yield import_module("scaling_model")
    sys.path.pop(0)


@pytest.fixture(scope="module")
def page(model: ModuleType) -> ModuleType:
    return import_module("scaling_page")


@pytest.fixture(scope="module")
def results() -> Any:
    return json.loads((ROOT / "benchmarks" / "results" / "scaling.json").read_text(encoding="utf-8"))


def costs(model: ModuleType, **changes: float) -> Any:
    usual = {"read_row": 5e-6, "row": 2e-4, "actor_block": 5e-3, "actor_row": 1e-6, "driver_block": 2e-3}
    return model.Costs(**{**usual, "driver_row": 1e-7, "start": 5.0, **changes})


def test_two_actors_and_four_blocks_take_what_a_hand_computes(model: ModuleType) -> None:
    free = model.Costs(0.0, 1.0, 0.0, 0.0, 0.5, 0.0, 10.0)  # a row a second; half a second of the driver a block
    job = model.Job(rows=40, files=1, block_rows=10, workers=2)
    simulation = model.Simulation(job, free)
    # 10 s of start; blocks 0 and 1 end at 20, 2 and 3 at 30; the driver writes 0, 1 and, from 30 on, 2, 3
    assert simulation.run() == pytest.approx(40 / 31.0)
    assert simulation.seconds == pytest.approx(31.0)


def test_a_reader_is_ahead_by_the_buffer_and_no_more(model: ModuleType) -> None:
    free = model.Costs(0.1, 0.9, 0.0, 0.0, 0.0, 0.0, 0.0)
    job = model.Job(rows=8, files=1, block_rows=1, workers=1, buffer=2)
    simulation = model.Simulation(job, free)
    simulation.run()  # the reader is ahead by the buffer and the block that is answered
    assert simulation.peak == 3
    assert simulation.seconds == pytest.approx(0.1 + 8 * 1.0)


def test_a_simulated_job_has_as_many_readers_as_one_on_ray(model: ModuleType) -> None:
    source = (ROOT / "src" / "offramp" / "cluster" / "ray_folder.py").read_text(encoding="utf-8")
    assert f"\nACTORS_PER_READER = {model.ACTORS_PER_READER}\n" in source
    assert "TaskPoolStrategy(size=1 + actors // ACTORS_PER_READER)" in source
    assert model.Job(10**6, 500, 2048, workers=800).readers == 101


@pytest.mark.parametrize("block_rows", [64, 2048])
@pytest.mark.parametrize("files", [1, 64])
@pytest.mark.parametrize("workers", [1, 8, 64, 512])
def test_a_long_job_without_mishaps_does_what_the_bound_says_and_never_more(
    model: ModuleType, workers: int, files: int, block_rows: int
) -> None:
    blocks = 64 * 12 if block_rows == 64 else 64 * 160
    job = model.Job(rows=blocks * block_rows, files=files, block_rows=block_rows, workers=workers)
    found, most = model.Simulation(job, costs(model)).run(), model.bound(job, costs(model))
    assert found <= most * (1 + 1e-9)
    assert found >= 0.9 * most


@pytest.mark.parametrize(
    ("changes", "files", "name"),
    [({"row": 2e-3}, 64, "actors"), ({"read_row": 1e-4}, 1, "readers"), ({"driver_block": 0.2}, 64, "driver")],
)
def test_the_bottleneck_is_the_part_that_is_made_slow(
    model: ModuleType, changes: dict[str, float], files: int, name: str
) -> None:
    job = model.Job(rows=10**7, files=files, block_rows=2048, workers=256)
    assert model.bottleneck(job, costs(model, **changes)) == name


def test_several_readers_are_worth_little_where_files_are_longer_than_the_buffer(model: ModuleType) -> None:
    slow = costs(model, read_row=5e-5, driver_block=1e-4, start=0.0)  # a reader keeps four actors at work
    rates = {}
    for files in (8, 3200):  # of 400 blocks, and of one
        job = model.Job(64 * 3200, files, 64, workers=32, buffer=2)
        rates[files] = model.Simulation(job, slow).run()
    assert rates[8] < 1.3 / 5e-5  # blocks of later files wait for those of the first
    assert rates[3200] > 2.5 / 5e-5


def test_stragglers_cost_what_waits_for_them_at_the_end_and_not_the_mean(model: ModuleType) -> None:
    job = model.Job(rows=2048 * 64 * 20, files=64, block_rows=2048, workers=32, spread=0.5)
    found = model.Simulation(job, costs(model)).run()
    assert 0.8 * model.bound(job, costs(model)) <= found <= 1.1 * model.bound(job, costs(model))
    tight = model.Job(**{**vars(job), "buffer": 1})
    assert model.Simulation(tight, costs(model)).run() < 0.9 * found


def test_failures_take_the_share_of_time_that_nodes_are_away(model: ModuleType) -> None:
    job = model.Job(2048 * 64 * 60, 64, 2048, 32, node_actors=4, failures=60.0, restart_s=20.0)
    mean = sum(model.Simulation(job, costs(model), seed).run() for seed in range(5)) / 5
    without = model.Simulation(model.Job(**{**vars(job), "failures": 0.0}), costs(model)).run()
    away_s = 20.0 + costs(model).block(2048) / 2  # of every minute between failures
    assert mean / without == pytest.approx(60 / (60 + away_s), rel=0.1)


def test_a_failure_repeats_blocks_and_loses_none(model: ModuleType) -> None:
    job = model.Job(64 * 500, 1, 64, 4, node_actors=2, failures=3600.0, restart_s=1.0)
    simulation = model.Simulation(job, costs(model))
    assert math.isfinite(simulation.run())
    assert simulation.repeated > 0
    assert simulation._written == 500


def test_the_guide_has_the_tables_of_the_results(page: ModuleType, results: Any) -> None:
    guide = page.GUIDE.read_text(encoding="utf-8")
    written = page.with_tables(guide, page.BEGIN, page.END, page.tables(results))
    assert written == guide, "run python benchmarks/scaling.py --from-file"
    file = ROOT / "benchmarks" / "results" / "scaling.md"
    assert file.read_text(encoding="utf-8") == page.page(results)


@pytest.mark.parametrize("point", ["full", "default"])
def test_results_are_below_their_bounds_and_one_packed_file_stops_growing(results: Any, point: str) -> None:
    curves = results["points"][point]["curves"]
    for curve in curves.values():
        assert all(run["rate"] <= run["bound"] * (1 + 1e-9) for run in curve)
    *_, half, most = next(curve for name, curve in curves.items() if name.startswith("one gz"))
    assert most["bottleneck"] == "readers"
    assert most["rate"] == pytest.approx(half["rate"], rel=0.05)
