"""One thread, one process for all exports, and a budget of CPU time for each test."""

import gc
import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch, and for all that tests start: on a shared machine more are slower

import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# The same examples in every run: a failure on one machine is a failure on all. Look for new ones with
# `pytest --hypothesis-profile=default`.
settings.register_profile("offramp", deadline=None, derandomize=True)
settings.load_profile("offramp")

BUDGET_S = 4.0  # a test should take 2 s at most on an idle machine; a slow one may need twice that
EXPORT_BUDGET_S = 60.0  # the first test that needs a graph exports it, for all that come after
UNLIMITED = ("slow", "network", "gpu")
SHARED = ("exported: Path", "url: str", "graph_of(gated()")  # a file with one of these needs the same exported graphs
EXPORTING = ("benchmark", "exits_in_graph", "graph", "saved_folder")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give each process whole files, and one process all that share exported graphs: what is shared is made once.

    The marker `xdist_group` is for this, but pytest-xdist 3.8 does not find it again in pytest 9.2.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(config.rootpath / nodeid.split("::")[0])

    return ByFile(config, log)


@cache
def group_of(file: Path) -> str:
    text = file.read_text(encoding="utf-8")
    return "exported" if any(words in text for words in SHARED) else file.as_posix()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Fail a test that takes too long and is not marked slow.

    What counts is the CPU time of this process, so that a busy machine fails nothing; fixtures and interpreters that a
    test starts do not count.
    """
    began = time.process_time()
    yield
    used = time.process_time() - began
    exports = group_of(item.path) == "exported" or item.path.stem.removeprefix("test_") in EXPORTING
    budget = EXPORT_BUDGET_S if exports else BUDGET_S
    if used > budget and not any(item.get_closest_marker(name) for name in UNLIMITED):
        pytest.fail(
            f"took {used:.1f} s of CPU time: over {budget:g} s, mark it slow or move its set-up into a fixture",
            pytrace=False,
        )


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Keep torch to one thread where something imported it before this file."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="module", autouse=True)
def frozen_heap() -> None:
    """Let later collections of garbage skip what is alive at the start of a file: above all, all imported modules.

    Accelerate collects after every training, which otherwise takes most of a short one's time.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A model's folder with both graphs; see `support.graphs.exported_folder`. Nothing is to be changed there."""
    from support.graphs import exported_folder, one_registry, parts_of

    with pytest.MonkeyPatch.context() as patch, one_registry():
        patch.setattr("offramp.inference.export.export_parts", parts_of)
        yield exported_folder(tmp_path_factory.mktemp("exported") / "model")
