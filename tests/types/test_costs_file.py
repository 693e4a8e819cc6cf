"""The cost tables of a folder: kept by machine and engine, of one set of weights."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from offramp.errors import InvalidInput
from offramp.types.cost_table import CostTable
from offramp.types.costs_file import COSTS_FILE, read_costs, save_costs
from support.models import LAYERS, tiny_model

TABLE = CostTable(tuple(range(1, LAYERS + 1)), (1.0, 2.0, 4.0, 8.0), 0.5, "onnx-int8", 1, 12.5, "a processor", 1, 2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_model().save_pretrained(tmp_path)
    return tmp_path


def test_a_table_replaces_the_one_of_its_machine_engine_batch_size_threads_and_workers(folder: Path) -> None:
    assert read_costs(folder) == ()
    others = [
        replace(TABLE, **change)
        for change in ({"machine": "b"}, {"engine": "onnx-float32"}, {"batch_size": 8}, {"threads": 2}, {"workers": 1})
    ]
    save_costs(folder, [TABLE, *others[:2]])
    newer = replace(TABLE, ms=(1.0, 1.0, 1.0, 1.5))
    save_costs(folder, [*others[2:], newer])
    assert read_costs(folder) == (newer, *others)


def test_tables_of_other_weights_are_not_used_and_do_not_stay(folder: Path, tmp_path: Path) -> None:
    save_costs(folder, [TABLE])
    other = tmp_path / "other"
    tiny_model(seed=1).save_pretrained(other)
    shutil.copyfile(folder / COSTS_FILE, other / COSTS_FILE)
    assert read_costs(other) is None
    save_costs(other, [replace(TABLE, batch_size=8)])
    assert [table.batch_size for table in read_costs(other) or ()] == [8]


@pytest.mark.parametrize(("seed", "kept"), [(0, True), (1, False)])
def test_a_model_that_is_saved_keeps_the_tables_of_its_own_weights(seed: int, kept: bool, folder: Path) -> None:
    save_costs(folder, [TABLE])
    tiny_model(seed=seed).save_pretrained(folder)
    assert (folder / COSTS_FILE).exists() == kept


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "costs.json: not cost tables that offramp wrote"),
        ("[]", "costs.json: not cost tables that offramp wrote"),
        ('{"format": 1, "tables": []}', "not cost tables that offramp wrote (no 'weights'); remove it"),
        ('{"format": 1, "weights": "", "tables": [{"ms": 1}]}', "not cost tables that offramp wrote"),
        ('{"format": 2, "costs": []}', "costs.json: format 2; this version of offramp reads up to 1"),
    ],
)
def test_a_file_that_cannot_be_read_stays_and_is_named_in_one_line(content: str, message: str, folder: Path) -> None:
    (folder / COSTS_FILE).write_text(content)
    for call in (lambda: read_costs(folder), lambda: save_costs(folder, [TABLE])):
        with pytest.raises(InvalidInput) as error:
            call()
        assert message in str(error.value)
        assert "\n" not in str(error.value)
    assert (folder / COSTS_FILE).read_text() == content


def test_tables_need_weights_beside_them(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="cost tables are kept beside a model's"):
        save_costs(tmp_path, [TABLE])


def test_a_time_at_a_mean_exit_lies_on_a_line_between_its_neighbours() -> None:
    assert [TABLE.ms_at(layer) for layer in (0.0, 1.0, 1.5, 2.5, 4.0, 5.0)] == [1, 1, 1.5, 3, 8, 8]


def test_a_table_of_an_earlier_version_has_no_threads(tmp_path: Path) -> None:
    TABLE.save(tmp_path / "cost.json")
    data = json.loads((tmp_path / "cost.json").read_text())
    (tmp_path / "cost.json").write_text(
        json.dumps({name: data[name] for name in data if name not in ("threads", "workers")})
    )
    assert CostTable.load(tmp_path / "cost.json") == replace(TABLE, threads=None, workers=1)
