"""The files of a folder, and the names of their answers."""

import logging
import os
from pathlib import Path

import pytest

from offramp.data.records import AS_NAMED, Reading
from offramp.errors import DataError, InvalidInput
from offramp.inference.folder_job.shards import find_shards
from offramp.types.whole_file import UNFINISHED


def names(folder: Path, reading: Reading = AS_NAMED) -> dict[str, str]:
    return {shard.name: shard.output for shard in find_shards(folder / "in", folder / "out", reading)}


def write(folder: Path, *files: str) -> None:
    for name in files:
        path = folder / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_files_are_found_by_kind_and_in_order_of_their_names(tmp_path: Path) -> None:
    write(tmp_path, "b.tsv", "a.b.csv.gz", "sub/deep/C.JSONL.GZ", "d.parquet")
    assert list(names(tmp_path).items()) == [
        ("a.b.csv.gz", "a.b.jsonl"),
        ("b.tsv", "b.jsonl"),
        ("d.parquet", "d.jsonl"),
        ("sub/deep/C.JSONL.GZ", "sub/deep/C.jsonl"),
    ]


def test_hidden_files_hold_no_rows_and_marked_ones_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "offramp")
    write(tmp_path, "a.csv", ".b.csv", "_SUCCESS", ".git/d.csv")
    assert list(names(tmp_path)) == ["a.csv"]
    assert caplog.messages == []
    write(tmp_path, "_temporary/c.csv", "_reviews.jsonl.gz")
    assert list(names(tmp_path)) == ["a.csv"]
    words = "left out, as their names begin with an underscore: 2, such as _reviews.jsonl.gz"
    assert caplog.messages == [f"{tmp_path / 'in'}: {words}"]


def test_files_of_other_kinds_are_left_out_with_their_number(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "offramp")
    write(tmp_path, "a.csv", "note.txt", "data.json")
    assert list(names(tmp_path)) == ["a.csv"]
    assert caplog.messages == [f"{tmp_path / 'in'}: left out, as files of other kinds: 2, such as data.json"]
    assert list(names(tmp_path, Reading(format="txt"))) == ["a.csv", "data.json", "note.txt"]


def test_two_files_of_one_stem_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "a.csv", "a.jsonl.gz")
    with pytest.raises(DataError, match=r"the answers to a\.csv and to a\.jsonl\.gz would both be a\.jsonl"):
        names(tmp_path)


def test_a_name_is_refused_before_the_job_where_its_answers_could_not_have_theirs(tmp_path: Path) -> None:
    stem = "\u00e9" * 118 + "n" * (255 - 236 - len(UNFINISHED) - len(".jsonl"))
    write(tmp_path, f"{stem}.csv")
    assert list(names(tmp_path)) == [f"{stem}.csv"]
    write(tmp_path, f"{stem}n.csv")
    with pytest.raises(DataError, match="a name too long for its answers"):
        names(tmp_path)


@pytest.mark.parametrize(("source", "output"), [("in", "in"), ("in", "in/out"), ("in/deep", "in")])
def test_one_folder_in_the_other_is_refused(source: str, output: str, tmp_path: Path) -> None:
    write(tmp_path, "deep/a.csv")
    with pytest.raises(InvalidInput, match="need a folder of their own"):
        find_shards(tmp_path / source, tmp_path / output, AS_NAMED)


def test_a_folder_without_files_names_what_it_holds(tmp_path: Path) -> None:
    write(tmp_path, "note.txt")
    with pytest.raises(DataError, match=r"no csv, tsv, jsonl, parquet files, .* it holds note\.txt"):
        names(tmp_path)
    with pytest.raises(InvalidInput, match="no such folder"):
        find_shards(tmp_path / "none", tmp_path / "out", AS_NAMED)


def test_links_are_followed_once_and_never_to_the_answers(tmp_path: Path) -> None:
    write(tmp_path, "sub/a.csv")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "answers.jsonl").touch()
    (tmp_path / "elsewhere.csv").touch()
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "results").symlink_to(tmp_path / "out")
    (tmp_path / "in" / "linked.csv").symlink_to(tmp_path / "elsewhere.csv")
    assert list(names(tmp_path)) == ["linked.csv", "sub/a.csv"]


def test_a_folder_that_cannot_be_listed_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "a.csv", "sub/b.csv")
    scan = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("sub"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr("os.scandir", refuse)
    with pytest.raises(InvalidInput, match=r"sub: cannot be listed: Permission denied"):
        names(tmp_path)
