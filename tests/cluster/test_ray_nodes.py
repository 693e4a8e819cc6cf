"""A cluster of several nodes, of which one is lost."""

from __future__ import annotations

import gzip
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path

import pytest

pytest.importorskip("ray.data", reason="Ray is not installed: pip install 'offramp[ray]'")

import ray
from ray.cluster_utils import Cluster

from offramp import Predictor
from offramp.cluster.ray_folder import on_cluster
from offramp.inference.folder_job.answered import AnsweredBlock
from offramp.inference.folder_job.blocks import FileRead
from offramp.inference.folder_job.identity import identity_of
from offramp.inference.folder_job.job import FolderJob, answer_here, run_job
from support.models import texts

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::ResourceWarning"),
]


@pytest.fixture
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two nodes of one core each; the driver is on the first."""
    settings = {"num_cpus": 1, "object_store_memory": 1 << 27}
    folder = str(tmp_path_factory.mktemp("ray"))
    cluster = Cluster(initialize_head=True, head_node_args=settings | {"temp_dir": folder, "include_dashboard": False})
    cluster.add_node(**settings)
    ray.init(cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def test_a_lost_node_loses_no_row(nodes: Cluster, exported: Path, tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    for part in range(4):
        (source / f"{part}.csv").write_text("text\n" + "".join(f"{text}\n" for text in texts(5000, seed=part)))
    with gzip.open(source / "long.csv.gz", "wt") as file:
        file.write("text\n" + "".join(f"{text}\n" for text in texts(40_000, seed=9)))
    predictor = Predictor.load(exported, "onnx-int8", threads=1, workers=1)
    identity = identity_of(exported, predictor, False)
    run_job(FolderJob(source, tmp_path / "here"), identity, answer_here(predictor, None, 0))

    with on_cluster("", exported, predictor, None, 0) as answer:

        def losing(reads: Sequence[FileRead]) -> Generator[AnsweredBlock, None, None]:
            for number, block in enumerate(answer(reads)):
                if number == 8:
                    nodes.remove_node(nodes.list_all_nodes()[-1])
                yield block

        totals = run_job(FolderJob(source, tmp_path / "there"), identity, losing)

    assert (totals["rows"], len(ray.nodes()), sum(node["Alive"] for node in ray.nodes())) == (60_000, 2, 1)
    for path in (tmp_path / "here").glob("*.jsonl"):
        assert (tmp_path / "there" / path.name).read_bytes() == path.read_bytes()
