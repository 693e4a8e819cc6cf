"""Files that are written get their names complete; links, devices and other processes' files stay what they are."""

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from offramp.errors import InvalidInput
from offramp.types.whole_file import UNFINISHED, give_name, refuse_output, unfinished_folder, whole_file, whole_path


def write(path: Path, text: str) -> None:
    with whole_file(path) as file:
        file.write(text)


def test_a_new_file_has_its_name_only_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "out.txt"
    with whole_file(path) as file:
        file.write("ü\n")
        assert not path.exists()
    assert path.read_bytes() == b"\xc3\xbc\n"
    assert os.listdir(tmp_path) == ["out.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failed_run_leaves_the_old_file_and_no_other(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "out.txt"
    path.write_text("old")

    def fail() -> None:
        with whole_file(path) as file:
            file.write("new")
            raise error

    with pytest.raises(error):
        fail()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["out.txt"]


def test_a_link_is_written_through_and_keeps_the_mode_of_its_file(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "a").write_text("old")
    (tmp_path / "store" / "a").chmod(0o600)
    (tmp_path / "second").symlink_to("store/a")
    (tmp_path / "first").symlink_to(tmp_path / "second")
    write(tmp_path / "first", "new")
    assert (tmp_path / "first").is_symlink()
    assert (tmp_path / "second").is_symlink()
    assert (tmp_path / "store" / "a").read_text() == "new"
    assert (tmp_path / "store" / "a").stat().st_mode & 0o777 == 0o600


def test_a_link_to_a_file_that_does_not_exist_makes_it(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("target")
    write(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "new"


def test_another_name_of_the_old_file_keeps_the_old_content(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("old")
    os.link(tmp_path / "out", tmp_path / "backup")
    write(tmp_path / "out", "new")
    assert (tmp_path / "backup").read_text() == "old"


def test_a_device_stays_a_device() -> None:
    write(Path(os.devnull), "gone")
    with whole_path(os.devnull) as unfinished:
        unfinished.write_bytes(b"gone")
    assert Path(os.devnull).is_char_device()


def test_a_pipe_gets_lines_and_whole_files(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for written in (whole_file, whole_path):
        with subprocess.Popen(["cat", pipe], stdout=subprocess.PIPE, text=True) as reader:
            with written(pipe) as out:
                out.write("text") if written is whole_file else out.write_text("text")
            assert reader.communicate()[0] == "text"
    assert pipe.is_fifo()


def test_the_file_behind_standard_output_is_written_straight(tmp_path: Path) -> None:
    code = (
        "from offramp.types.whole_file import whole_file\n"
        "with whole_file('/dev/stdout') as file: file.write('answer')\n"
    )
    with (tmp_path / "out").open("w") as out:
        subprocess.run([sys.executable, "-c", code], stdout=out, check=True)
        inode = os.fstat(out.fileno()).st_ino
    assert (tmp_path / "out").read_text() == "answer"
    assert (tmp_path / "out").stat().st_ino == inode


def test_remains_of_a_killed_run_are_written_over(tmp_path: Path) -> None:
    (tmp_path / f"{UNFINISHED}out").write_text("half of a longer file")
    write(tmp_path / "out", "new")
    assert (tmp_path / "out").read_text() == "new"
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.skipif(sys.platform == "win32", reason="there is no flock")
def test_two_writers_of_one_file(tmp_path: Path) -> None:
    with whole_file(tmp_path / "out") as first:
        first.write("first")
        with pytest.raises(InvalidInput, match="out: another process is writing it"), whole_file(tmp_path / "out"):
            pass
    assert (tmp_path / "out").read_text() == "first"


@pytest.mark.parametrize("number", [errno.EBUSY, errno.EXDEV])
def test_a_file_that_cannot_be_replaced_gets_the_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    (tmp_path / "out").write_text("old")
    (tmp_path / "new").write_text("new")
    replace, calls = os.replace, []

    def refuse_once(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == 1:
            raise OSError(number, "no")
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse_once)
    give_name(tmp_path / "new", tmp_path / "out")
    assert (tmp_path / "out").read_text() == "new"
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
def test_a_new_file_has_the_mode_of_the_umask_whatever_wrote_it(tmp_path: Path) -> None:
    mask = os.umask(0o027)
    try:
        for number in range(2):
            with whole_path(tmp_path / "out") as unfinished:
                unfinished.write_text("new")
                unfinished.chmod(0o600)
            assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == (0o640, 0o604)[number]
            (tmp_path / "out").chmod(0o604)  # which the next one keeps
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(mask)


def test_a_folder_of_unfinished_files_starts_empty_and_goes(tmp_path: Path) -> None:
    (tmp_path / f"{UNFINISHED}model.onnx").mkdir()
    (tmp_path / f"{UNFINISHED}model.onnx" / "half").write_text("half")
    with unfinished_folder(tmp_path / "model.onnx") as folder:
        assert not os.listdir(folder)
        (folder / "model.onnx").write_text("graph")
        give_name(folder / "model.onnx", tmp_path / "model.onnx")
    assert os.listdir(tmp_path) == ["model.onnx"]


class TestRefuseOutput:
    def test_a_folder(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidInput, match="a folder; give the name of a file"):
            refuse_output(tmp_path)

    def test_a_dash(self) -> None:
        with pytest.raises(InvalidInput, match="-: not a file; /dev/stdout is standard output"):
            refuse_output("-")

    def test_a_missing_folder(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidInput, match=r"no/out: there is no folder .*/no; make it first"):
            refuse_output(tmp_path / "no" / "out")

    @pytest.mark.parametrize("link", [False, True])
    def test_an_input(self, tmp_path: Path, link: bool) -> None:
        (tmp_path / "in.csv").write_text("text\na\n")
        if link:
            (tmp_path / "out").symlink_to("in.csv")
        with pytest.raises(InvalidInput, match="an input of this command, which is not overwritten"):
            refuse_output(tmp_path / ("out" if link else "in.csv"), None, "-", tmp_path / "in.csv")

    def test_a_file_of_an_input_folder(self, tmp_path: Path) -> None:
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "train.parquet").write_text("rows")
        with pytest.raises(InvalidInput, match="an input"):
            refuse_output(tmp_path / "data" / "train.parquet", tmp_path)
        refuse_output(tmp_path / "data" / "new.txt", tmp_path)

    def test_a_file_of_a_models_folder(self, tmp_path: Path) -> None:
        for name in ("config.json", "model.safetensors", "model.int8.onnx.data", "trace.safetensors", "page.html"):
            (tmp_path / name).write_text("")
        for name in ("config.json", "model.safetensors", "model.int8.onnx.data"):
            with pytest.raises(InvalidInput, match="an input"):
                refuse_output(tmp_path / name, tmp_path)
        for name in ("trace.safetensors", "page.html"):  # of an earlier run
            refuse_output(tmp_path / name, tmp_path)

    def test_a_device(self) -> None:
        refuse_output(os.devnull, os.devnull)
