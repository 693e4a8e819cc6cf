"""Output files that get their names once they are complete; links and devices stay what they are. No torch."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from offramp.errors import InvalidInput

if sys.platform != "win32":
    import fcntl

UNFINISHED = ".unfinished-"
"""Beginning of the name of a file that is not complete yet; a killed run leaves it, the next run writes over it."""

MODEL_FILES = (
    "config.json", "*.safetensors.index.json", "model*.safetensors", "adapter_*", "tokenizer*", "vocab*", "merges.txt",
    "*.model", "special_tokens_map.json", "preprocessor_config.json", "operating_points.json", "costs.json",
    "lines.json", "README.md", "model*.onnx", "model*.onnx.data", "openvino/*",
)  # fmt: skip


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[IO[str]]:
    """Open a text file (UTF-8) that replaces the file of its name once it is complete.

    A link is written through. A device or a pipe is written straight, line by line as it comes. After an error the old
    file is as it was. Half a character (a lone surrogate), which UTF-8 has not, becomes its escape, as in JSON.

    Raises:
        InvalidInput: the file cannot be written (see `refuse_output`).
    """
    how: dict[str, Any] = {"encoding": "utf-8", "errors": "backslashreplace", "newline": "\n"}
    if _is_stream(path):
        with open(path, "w", **how) as stream:
            yield stream
        return
    with whole_path(path) as unfinished, unfinished.open("w", **how) as file:
        yield file


@contextmanager
def whole_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Return the path of an unfinished file, with the same suffix, that replaces the file of its name at the end.

    See `whole_file`. For a device or a pipe it is a temporary file, which is copied at the end.

    Raises:
        InvalidInput: the file cannot be written (see `refuse_output`), or another process is writing it.
    """
    refuse_output(path)
    if _is_stream(path):
        with tempfile.TemporaryDirectory() as folder:
            copied = Path(folder, Path(path).name)
            yield copied
            with copied.open("rb") as source, open(path, "wb") as stream:
                shutil.copyfileobj(source, stream)
        return
    target = Path(os.path.realpath(path))
    unfinished = target.with_name(UNFINISHED + target.name)
    with _locked(unfinished, path):
        try:
            yield unfinished
            give_name(unfinished, target)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise


@contextmanager
def unfinished_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Return an empty folder beside the file of a name, for files that are given their names together.

    It is removed at the end; what a killed run left in it is removed before.
    """
    folder = Path(path).with_name(UNFINISHED + Path(path).name)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def refuse_output(path: str | os.PathLike[str], *inputs: str | os.PathLike[str] | None) -> None:
    """Refuse an output before any work is done for it.

    Args:
        path: the file to be written.
        inputs: files and folders that are read, a data set's name, or None.

    Raises:
        InvalidInput: it is a folder, its folder is missing or not writable, or it is one of the inputs: the file
            itself, a file of a model's folder that is read from there, or any file of another folder.
    """
    path = Path(path)
    if str(path) == "-":
        raise InvalidInput("-: not a file; /dev/stdout is standard output")
    if path.is_dir():
        raise InvalidInput(f"{path}: a folder; give the name of a file")
    if not _is_stream(path):
        folder = Path(os.path.realpath(path)).parent
        if not folder.is_dir():
            raise InvalidInput(f"{path}: there is no folder {folder}; make it first")
        if not os.access(folder, os.W_OK):
            raise InvalidInput(f"{path}: the folder {folder} is not writable")
    for source in inputs:
        if source is not None and path.is_file() and _reads(Path(source), path):
            raise InvalidInput(f"{path}: an input of this command, which is not overwritten; choose another name")


def _reads(source: Path, path: Path) -> bool:
    """Return True where an existing file is read with an input."""
    if source.is_file():
        return source.samefile(path)
    if not source.is_dir() or source.resolve() not in path.resolve().parents:
        return False
    model = (source / "config.json").exists()
    return not model or any(path.match(pattern) for pattern in MODEL_FILES)


def _is_stream(path: str | os.PathLike[str]) -> bool:
    """Return True for a device, a pipe, a socket, and for the file that standard output or standard error goes to."""
    try:
        status = os.stat(path)
    except OSError:
        return False
    return not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)) or any(
        os.path.samestat(status, standard) for standard in _standard_streams()
    )


def _standard_streams() -> Iterator[os.stat_result]:
    for descriptor in (1, 2):
        with suppress(OSError):
            yield os.fstat(descriptor)


@contextmanager
def _locked(unfinished: Path, path: str | os.PathLike[str]) -> Iterator[None]:
    """Hold the unfinished file for this process, and empty what a killed one left in it."""
    if sys.platform == "win32":  # where an open file cannot be renamed
        yield
        return
    with unfinished.open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InvalidInput(f"{os.fspath(path)}: another process is writing it") from None
        lock.truncate(0)
        yield


@contextmanager
def alone_in(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Hold a folder for this process, which writes its files one after the other.

    Raises:
        InvalidInput: another process holds it.
    """
    if sys.platform == "win32":  # which cannot open a folder
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some file systems have no locks of folders
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InvalidInput(f"{os.fspath(folder)}: another process is writing there") from None
        yield
    finally:
        os.close(descriptor)


def new_file_mode() -> int:
    """Return the mode that this process gives new files. Safetensors from 0.8 on writes 0600 in any case."""
    mask = os.umask(0o077)
    os.umask(mask)
    return 0o666 & ~mask


def give_name(unfinished: Path, path: str | os.PathLike[str]) -> None:
    """Give a complete file its name; a link is written through.

    It has the mode and the owner of the file before it, else the mode of a new file.
    """
    target = Path(os.path.realpath(path))
    if target.exists():
        shutil.copymode(target, unfinished)
        before, now = target.stat(), unfinished.stat()
        if (before.st_uid, before.st_gid) != (now.st_uid, now.st_gid):
            with suppress(OSError):
                os.chown(unfinished, before.st_uid, before.st_gid)
    else:
        unfinished.chmod(new_file_mode())
    try:
        os.replace(unfinished, target)
    except OSError as error:
        if error.errno == errno.EXDEV:  # a link that leads to another file system
            with whole_path(target) as near:
                shutil.copyfile(unfinished, near)
        elif error.errno == errno.EBUSY:  # a mounted file cannot be replaced
            shutil.copyfile(unfinished, target)
        else:
            raise
        unfinished.unlink()
