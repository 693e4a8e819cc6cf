import os

os.environ["OMP_NUM_THREADS"] = "1"  # of this process and of all that tests start; on a shared machine more are slower

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)

# The same examples in every run: a failure on one machine is a failure on all. Look for new ones with
# `pytest --hypothesis-profile=default`.
settings.register_profile("offramp", deadline=None, derandomize=True)
settings.load_profile("offramp")


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A model's folder with both of its graphs; see `exported.exported_folder`. Nothing is to be changed there."""
    from exported import exported_folder, one_registry, parts_of

    with pytest.MonkeyPatch.context() as patch, one_registry():
        patch.setattr("offramp.exporting.export_parts", parts_of)
        yield exported_folder(tmp_path_factory.mktemp("exported") / "model")
