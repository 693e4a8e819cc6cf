"""Batch jobs on Ray Data: answers are the predictor's, rows keep their order, faults stay in their rows.

One local cluster of two cores for the module; what needs no cluster calls the actors' classes in this process.
"""

from __future__ import annotations

import gzip
import os
import pickle
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

pytest.importorskip("ray.data", reason="Ray is not installed: pip install 'offramp[ray]'")

import ray
from ray.data import Schema

from offramp import Predictor
from offramp.cluster.actors import BundleAnswerer, Loading, TableAnswerer, beside
from offramp.cluster.ray_data import _columns, cores_of_an_actor, predict
from offramp.cluster.ray_folder import _connect, groups, on_cluster
from offramp.data.columns import Columns
from offramp.errors import DataError, InvalidInput, OfframpError
from offramp.inference.folder_job.blocks import FileRead, RowBlock
from offramp.inference.folder_job.identity import identity_of
from offramp.inference.folder_job.job import FolderJob, answer_here, run_job
from offramp.inference.folder_job.manifest import MANIFEST
from offramp.inference.folder_job.shards import Shard
from support.models import save_folder, texts, tiny_model

INT8 = "onnx-int8"
SHARED = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A local cluster of two cores."""
    folder = str(tmp_path_factory.mktemp("ray"))
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=1 << 28, _temp_dir=folder)
    yield
    ray.shutdown()


def wanted(folder: Path, rows: Sequence[Any]) -> list[dict[str, Any]]:
    return [dict(answer) for answer in Predictor.load(folder, INT8, threads=1, workers=1)(list(rows))]


def answers(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The answers in rows of a dataset, without what is null."""
    names = ("label", "score", "exit_layer", "error")
    return [{name: row[name] for name in names if not pd.isna(row[name])} for row in rows]


def answerer(folder: Path, engine: str = INT8, top_k: int | None = 0) -> TableAnswerer:
    predictor = Predictor.load(folder, engine, threads=1, workers=1)
    return TableAnswerer(Loading.of(folder, predictor, 1, None, top_k), Columns("text"))


# --- on a cluster -----------------------------------------------------------------------------------------------------


@SHARED
def test_answers_are_the_predictors_and_rows_keep_their_order(cluster: None, exported: Path, tmp_path: Path) -> None:
    rows = texts(5000, seed=3)
    for part in range(5):
        some = rows[part * 1000 : part * 1000 + 1000]
        pd.DataFrame({"text": some, "label": range(1000)}).to_parquet(tmp_path / f"{part}.parquet")
    first = rows[0]

    def late(table: pa.Table) -> pa.Table:
        time.sleep(2 if table["text"][0].as_py() == first else 0)
        return table

    answered = predict(ray.data.read_parquet(str(tmp_path)), exported, engine=INT8)
    found = answered.map_batches(late, batch_size=None, batch_format="pyarrow").take_all()

    assert [row["text"] for row in found] == rows
    assert [row["input_label"] for row in found] == [*range(1000)] * 5
    assert answers(found) == wanted(exported, rows)


@SHARED
def test_a_packed_csv_of_pairs_and_a_written_result(cluster: None, exported: Path, tmp_path: Path) -> None:
    firsts, seconds = texts(60, seed=1), texts(60, seed=2)
    with gzip.open(tmp_path / "pairs.csv.gz", "wt") as file:
        file.write("premise,hypothesis\n" + "".join(f"{a},{b}\n" for a, b in zip(firsts, seconds, strict=True)))

    dataset = ray.data.read_csv(str(tmp_path / "pairs.csv.gz"), arrow_open_stream_args={"compression": "gzip"})
    predict(dataset, exported, engine=INT8, actors=1).write_parquet(str(tmp_path / "out"))

    found = pd.read_parquet(tmp_path / "out").to_dict("records")
    assert [row["premise"] for row in found] == firsts
    assert answers(found) == wanted(exported, list(zip(firsts, seconds, strict=True)))


@SHARED
def test_rows_of_a_frame_that_are_no_texts_have_an_error(cluster: None, exported: Path) -> None:
    frame = pd.DataFrame({"body": ["good cat", 3, None, np.nan, " ", "bad tree"]}, dtype=object)

    found = predict(ray.data.from_pandas(frame), exported, text_column="body", engine=INT8, actors=1).take_all()

    good = wanted(exported, ["good cat", "bad tree"])
    errors = [row["error"] for row in found]
    assert errors == [
        None,
        '"body" must be a text, found 3',
        'there is no "body"',
        'there is no "body"',
        '"body" is blank',
        None,
    ]
    assert answers([found[0], found[-1]]) == good


def test_an_empty_dataset_stays_empty(cluster: None, exported: Path) -> None:
    assert predict(ray.data.from_items([]), exported, engine=INT8).take_all() == []


@SHARED
def test_a_folder_is_answered_as_without_a_cluster(
    cluster: None, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where the cluster's processes are not
    source = Path("in")
    source.mkdir()
    for name in ("a.csv", "b.csv"):
        (source / name).write_text("text\n" + "".join(f"{text}\n" for text in [*texts(300, seed=5), '" "']))
    with gzip.open(source / "long.csv.gz", "wt") as file:
        file.write("text\n" + "".join(f"{text}\n" for text in texts(5000, seed=6)))
    predictor = Predictor.load(exported, INT8, threads=1, workers=1)
    identity = identity_of(exported, predictor, False)

    here = run_job(FolderJob(source, tmp_path / "here"), identity, answer_here(predictor, None, 0))
    with on_cluster("", exported, predictor, None, 0) as answer:
        there = run_job(FolderJob(source, tmp_path / "there"), identity, answer)

    assert (here["rows"], here["errors"]) == (5602, 2)
    assert {name: there[name] for name in ("rows", "errors")} == {"rows": 5602, "errors": 2}
    outputs = sorted(path.name for path in (tmp_path / "here").iterdir() if path.name != MANIFEST)
    assert outputs == ["a.jsonl", "b.jsonl", "long.jsonl"]
    for name in outputs:
        assert (tmp_path / "there" / name).read_bytes() == (tmp_path / "here" / name).read_bytes()


@SHARED
def test_an_actor_without_the_model_ends_the_job_in_one_line(
    cluster: None, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = Predictor.load(exported, INT8, threads=1, workers=1)
    loading = replace(Loading.of(exported, predictor, 1, None, 0), digest="of another model")
    monkeypatch.setattr(Loading, "of", lambda *_: loading)
    (tmp_path / "a.csv").write_text("text\ngood cat\n")
    reads = [FileRead(Shard("a.csv", str(tmp_path / "a.csv"), "a.jsonl"))]

    with (
        on_cluster("", exported, predictor, None, 0, actors=1) as answer,
        pytest.raises(OfframpError, match=r"^node \S+: \S+ holds another model than the node where the job began$"),
    ):
        list(answer(reads))


def test_more_threads_than_a_node_has_cores_are_refused(cluster: None, exported: Path) -> None:
    predictor = Predictor.load(exported, INT8, threads=1, workers=1)
    with (
        pytest.raises(InvalidInput, match="--threads 3: no node of the cluster has so many cores; at most 2"),
        on_cluster("", exported, predictor, None, 0, threads=3),
    ):
        pass


# --- in this process --------------------------------------------------------------------------------------------------


def test_columns_are_told_apart_by_name_in_every_block(exported: Path) -> None:
    answer = answerer(exported)
    first = answer(pa.table({"text": ["good cat"], "label": [7], "id": [1]}))
    other = answer(pa.table({"id": [2], "label": [8], "text": ["bad tree"]}))

    assert (first["input_label"].to_pylist(), first["id"].to_pylist()) == ([7], [1])
    assert (other["input_label"].to_pylist(), other["id"].to_pylist()) == ([8], [2])
    assert answers(first.to_pylist() + other.to_pylist()) == wanted(exported, ["good cat", "bad tree"])


def test_an_actor_counts_the_texts_that_it_cuts(exported: Path) -> None:
    blocks = [RowBlock(0, "digest", 0, ["good cat", "the film " * 200], [1, 2], "a.txt, line ")]
    loading = Loading.of(exported, Predictor.load(exported, INT8, threads=1, workers=1), 1, None, 0)
    (bundle,) = BundleAnswerer(loading)(pa.table({"bundle": [pickle.dumps(blocks)]})).to_pylist()

    assert (bundle["cut"], bundle["texts"], bundle["limit"] < 400) == (1, 2, True)
    assert [block.tally.rows for block in pickle.loads(bundle["answers"])] == [2]


def test_a_block_of_several_chunks_is_answered_as_one_chunk(exported: Path) -> None:
    chunks = pa.chunked_array([["good cat"], ["bad tree"], ["the film"]])
    answered = answerer(exported)(pa.table({"text": chunks}))

    assert [column.num_chunks for column in answered.columns] == [1] * 5  # text, label, score, exit_layer, error
    assert answered["text"].to_pylist() == ["good cat", "bad tree", "the film"]


def test_scores_are_a_map_of_the_most_probable_labels(exported: Path) -> None:
    answered = answerer(exported, top_k=2)(pa.table({"text": ["good cat", ""]})).to_pylist()
    label, score = answered[0]["scores"][0]

    assert (label, score) == (answered[0]["label"], answered[0]["score"])
    assert [len(answered[0]["scores"]), answered[1]["scores"]] == [2, None]


@pytest.mark.parametrize(
    ("problem", "outputs", "column", "kind"),
    [
        ("regression", 1, "value", pa.float64()),
        ("regression", 2, "value", pa.list_(pa.float64())),
        ("multi_label_classification", 3, "labels", pa.list_(pa.string())),
    ],
)
def test_other_kinds_of_answers_have_columns_of_their_own(
    tmp_path: Path, problem: str, outputs: int, column: str, kind: pa.DataType
) -> None:
    save_folder(tmp_path, tiny_model(num_labels=outputs, problem_type=problem))
    rows = ["good cat", "bad tree", "the film"]

    answered = answerer(tmp_path, "torch")(pa.table({"text": rows}))

    one_by_one = [Predictor.load(tmp_path, "torch", threads=1)([row])[0] for row in rows]
    assert answered.schema.field(column).type == kind
    if column == "labels":
        assert answered[column].to_pylist() == [answer["labels"] for answer in one_by_one]
    else:
        values = np.array(answered[column].to_pylist())
        assert values == pytest.approx(np.array([answer["value"] for answer in one_by_one]), abs=1e-5)


def test_a_node_without_the_model_or_with_another_one_says_so(exported: Path, tmp_path: Path) -> None:
    predictor = Predictor.load(exported, INT8, threads=1, workers=1)
    loading = Loading.of(exported, predictor, 1, None, 0)
    assert loading.load().point == predictor.point

    with pytest.raises(OfframpError, match=f"^node {os.uname().nodename}: .*; all nodes need the model at one path$"):
        replace(loading, folder=str(tmp_path / "none")).load()
    with pytest.raises(OfframpError, match="holds another model"):
        replace(loading, digest="0").load()


def test_the_text_is_the_only_column_of_strings() -> None:
    fields = [("id", pa.int64()), ("ticket", pa.large_string()), ("label", pa.string())]
    assert _columns(Schema(pa.schema(fields)), None, None) == Columns("ticket")
    assert _columns(Schema(pa.schema([("text", pa.string()), ("text_pair", pa.string())])), None, None) == Columns(
        "text", "text_pair"
    )
    with pytest.raises(DataError, match='the dataset: no column "words"; the columns are "id", "ticket", "label"'):
        _columns(Schema(pa.schema(fields)), "words", None)


def test_a_name_that_is_taken_twice_is_refused() -> None:
    assert beside(["text", "label"], ["label", "score"]) == ["text", "input_label"]
    with pytest.raises(DataError, match='its column "label" has the name of an answer, and "input_label" is taken too'):
        beside(["label", "input_label"], ["label"])


@pytest.mark.parametrize("count", [1, 2, 3, 10])
@pytest.mark.parametrize("cores", [1, 2, 4, 64])
def test_every_node_keeps_a_core_for_read_tasks(count: int, cores: int) -> None:
    asked = cores_of_an_actor([cores] * count)
    on_a_node = -(-count * cores // max(count - 1, 1))  # after one of several is lost
    assert on_a_node * asked <= cores - 1 + asked
    assert cores_of_an_actor([2]) == 0.5


def test_long_files_are_read_alone_and_short_ones_together(tmp_path: Path) -> None:
    sizes = {"a": 9 << 20, "b": 5 << 20, "c": 17 << 20, "d": 1, "e": 1}
    for name, size in sizes.items():
        with (tmp_path / name).open("wb") as file:
            file.truncate(size)
    reads = [FileRead(Shard(name, str(tmp_path / name), f"{name}.jsonl")) for name in [*sizes, "gone"]]

    assert [[number for number, _ in group] for group in groups(reads)] == [[0, 1], [2], [3, 4, 5]]


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("ray://head:10001", "Ray Client is not supported"),
        ("head", "an address is auto or HOST:PORT"),
        ("127.0.0.1:1", "no Ray cluster answers there"),
    ],
)
def test_an_address_without_a_cluster_is_refused_at_once(
    exported: Path, address: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    predictor = Predictor.load(exported, INT8, threads=1, workers=1)
    began = time.perf_counter()
    with pytest.raises(InvalidInput, match=f"^--ray {address}: {reason}"):
        on_cluster(address, exported, predictor, None, 0).__enter__()
    assert time.perf_counter() - began < 10


def test_a_cluster_of_ones_own_is_started_whatever_else_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    addresses: list[str | None] = []
    monkeypatch.setattr(ray, "init", lambda address=None, **_: addresses.append(address))
    _connect("")
    assert addresses == ["local"]
