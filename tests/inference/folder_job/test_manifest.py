"""A manifest is read as it was written, or refused in one line; it takes a small part of the time."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from offramp.errors import InvalidInput
from offramp.inference.folder_job.manifest import MANIFEST, FileRecord, Manifest

RECORD = FileRecord("a.jsonl", "done", "12", "34", 5, 1, {"0": 3, "10": 1}, "", "2026-11-29T00:00:00+00:00", "0.1")


def manifest(folder: Path, count: int = 1) -> Manifest:
    files = {f"a{number}.csv": FileRecord(**vars(RECORD)) for number in range(count)}
    return Manifest(folder, {"engine": "torch"}, files, {"gone.csv": FileRecord("gone.jsonl")})


def test_a_manifest_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert Manifest.read(tmp_path) is None
    manifest(tmp_path, 2).save(now=True)
    read = Manifest.read(tmp_path)
    assert read is not None
    assert (read.job, read.files["a1.csv"], list(read.gone)) == ({"engine": "torch"}, RECORD, ["gone.csv"])


def test_totals_are_sums_over_the_files_of_the_input(tmp_path: Path) -> None:
    assert manifest(tmp_path, 2).totals() == {
        "rows": 10,
        "errors": 2,
        "exit_layers": {"0": 6, "10": 2},
        "mean_exit_layer": 2.5,
        "files_done": 2,
        "files_failed": 0,
    }


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.pop("files"),
        lambda data: data.update(job=7),
        lambda data: data.update(format="two"),
        lambda data: data["files"].update(x=[]),
        lambda data: data["files"]["a0.csv"].update(rows="5"),
        lambda data: data["files"]["a0.csv"].update(output=None),
        lambda data: data["files"]["a0.csv"].update(exit_layers={"one": 1}),
        lambda data: data["files"]["a0.csv"].update(exit_layers={"1": None}),
        lambda data: data["files"]["a0.csv"].update(colour="red"),
    ],
)
def test_an_edited_manifest_is_refused_in_one_line(change: Any, tmp_path: Path) -> None:
    manifest(tmp_path).save(now=True)
    data = json.loads((tmp_path / MANIFEST).read_text())
    change(data)
    (tmp_path / MANIFEST).write_text(json.dumps(data))
    with pytest.raises(InvalidInput, match=r"^\S*manifest\.json: no manifest of a job \(.*\); choose another folder$"):
        Manifest.read(tmp_path)


def test_a_torn_manifest_and_a_newer_one_are_refused(tmp_path: Path) -> None:
    manifest(tmp_path).save(now=True)
    text = (tmp_path / MANIFEST).read_text()
    (tmp_path / MANIFEST).write_text(text[: len(text) // 2])
    with pytest.raises(InvalidInput, match="no manifest of a job"):
        Manifest.read(tmp_path)
    (tmp_path / MANIFEST).write_text(text.replace('"format": 1', '"format": 2'))
    with pytest.raises(InvalidInput, match="format 2; this version of offramp reads up to 1"):
        Manifest.read(tmp_path)


def test_a_manifest_is_written_at_most_for_the_twentieth_part_of_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, written = [0.0], []

    class Clock:
        monotonic = staticmethod(lambda: clock[0])

    def dump(*_: Any, **__: Any) -> None:
        written.append(clock[0])
        clock[0] += 0.5  # what it takes

    monkeypatch.setattr("offramp.inference.folder_job.manifest.time", Clock)
    monkeypatch.setattr(json, "dump", dump)
    saved = manifest(tmp_path)
    while clock[0] < 100:
        saved.save()
        clock[0] += 0.1
    assert len(written) == 10  # each half a second, and ten seconds between
    saved.save(now=True)
    assert len(written) == 11
    assert time.monotonic() > 0


def test_a_name_that_is_not_utf_8_is_kept(tmp_path: Path) -> None:
    Manifest(tmp_path, {}, {"\udcff.csv": FileRecord("\udcff.jsonl")}, {}).save(now=True)
    read = Manifest.read(tmp_path)
    assert read is not None
    assert list(read.files) == ["\udcff.csv"]
