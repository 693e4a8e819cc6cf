"""A graph answers for the model beside it alone, whatever the times of the files, and through links of any kind."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from offramp.errors import InvalidInput
from offramp.inference.load_engine import load_engine
from offramp.inference.onnx.assemble import switch_policy
from offramp.inference.onnx_engine import OnnxEngine
from offramp.inference.predictor import Predictor
from offramp.inference.torch_engine import TorchEngine
from offramp.model.modeling import MultiExitModel
from offramp.types.graph_file import SOURCE, read_metadata
from offramp.types.model_content import ModelContent
from support.graphs import copied, gated
from support.models import texts, tiny_model

NAMES = {0: "bad", 1: "fine", 2: "good"}
SAVED = Path(__file__).parent / "folder_of_0.1.0"


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> Path:
    return copied(exported, tmp_path / "model")


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The warnings of this test."""
    messages: list[str] = []
    monkeypatch.setattr(
        "offramp.inference.load_engine.logger.warning", lambda text, *values: messages.append(text % values)
    )
    return messages


# What makes a graph stale.


def other_weights(folder: Path) -> None:
    tiny_model(id2label=NAMES, pooling="mean", certainty=True, seed=5).save_pretrained(folder.parent / "other")
    shutil.copyfile(folder.parent / "other" / "model.safetensors", folder / "model.safetensors")


def one_number_of_one_exit(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def two_matrices_swapped(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    query, key = (
        next(name for name in tensors if f"layer.0.attention.self.{part}.weight" in name) for part in ("query", "key")
    )
    tensors[query], tensors[key] = tensors[key], tensors[query]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def other_config(folder: Path) -> None:
    change_config(folder, pooling="first")


def other_class_names(folder: Path) -> None:
    change_config(folder, id2label={"0": "good", "1": "fine", "2": "bad"})


def other_exits(folder: Path) -> None:
    other = tiny_model(id2label=NAMES, pooling="mean", certainty=True, exit_layers=[1, 2, 4])
    other.save_pretrained(folder.parent / "other")
    for name in ("model.safetensors", "config.json"):
        shutil.copyfile(folder.parent / "other" / name, folder / name)
    (folder / "operating_points.json").unlink()


def other_tokenizer(folder: Path) -> None:
    path = folder / "tokenizer.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"cat"', '"cut"'), encoding="utf-8")


def zeros(folder: Path) -> None:
    path = folder / "model.onnx.data"
    path.write_bytes(bytes(path.stat().st_size))


def cut(folder: Path) -> None:
    path = folder / "model.onnx.data"
    path.write_bytes(path.read_bytes()[:-1000])


def older_data(folder: Path) -> None:
    path = folder / "model.onnx.data"
    content = bytearray(path.read_bytes())
    content[-4:] = b"\0\0\0\0"
    path.write_bytes(content)


def int8_by_the_name_of_float32(folder: Path) -> None:
    for ending in ("", ".data"):
        shutil.copyfile(folder / f"model.int8.onnx{ending}", folder / f"model.onnx{ending}")


def pointer(folder: Path) -> None:
    (folder / "model.onnx.data").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n")


def change_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **changes}), encoding="utf-8")


STALE: dict[Callable[[Path], None], str] = {
    other_weights: "model.onnx: made of other weights than those beside it",
    one_number_of_one_exit: "model.onnx: made of other weights than those beside it",
    two_matrices_swapped: "model.onnx: made of other weights than those beside it",
    other_config: "model.onnx: made for another configuration than the config.json beside it",
    other_class_names: "model.onnx: made for other class names than those in the config.json beside it",
    other_exits: "model.onnx: made for exits after layers [1, 2, 3, 4], config.json has [1, 2, 4]",
    other_tokenizer: "model.onnx: made for another tokenizer than the one beside it",
    zeros: "model.onnx.data: not the weights that the graph beside it was written with",
    cut: "model.onnx.data: cut: ",
    older_data: "model.onnx.data: not the weights that the graph beside it was written with",
    int8_by_the_name_of_float32: "model.onnx: made in int8, and its name is that of float32",
    pointer: "model.onnx.data: a pointer of Git LFS; `git lfs pull` loads the file itself",
}


@pytest.mark.parametrize("change", STALE, ids=lambda change: change.__name__)
@pytest.mark.parametrize("age", [-1000, 0, 1000])
def test_a_stale_graph_never_answers_whatever_the_times(
    change: Callable[[Path], None], age: int, folder: Path, warnings: list[str]
) -> None:
    change(folder)
    for path in folder.iterdir():
        time = 1_700_000_000 + (age if path.suffix == ".safetensors" else 0)
        os.utime(path, (time, time))

    with pytest.raises(InvalidInput) as refused:
        load_engine(folder, "onnx")

    line = f"{folder}{os.sep}{STALE[change]}"
    assert str(refused.value).startswith(line)
    assert str(refused.value).endswith(f"; `offramp export {folder}` makes it anew")
    assert "\n" not in str(refused.value)
    assert isinstance(load_engine(folder), TorchEngine)
    (warning,) = warnings
    assert warning == f"torch runs this model: {refused.value}"


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: change_config(folder, transformers_version="99.0", dtype="float16", exit_dropout=0.5),
        lambda folder: change_config(folder, something_new=None),
        lambda folder: truncating(folder),
        lambda folder: gated().save_pretrained(folder, max_shard_size="20KB"),
        lambda folder: (folder / "model.safetensors").unlink(),  # a folder with the graph alone
        lambda folder: shutil.copyfile(folder / "model.safetensors", folder / "trace.safetensors"),
    ],
    ids=["version", "new key", "truncation", "shards", "no weights", "other safetensors"],
)
def test_a_graph_stays_where_no_answer_can_have_changed(change: Callable[[Path], None], folder: Path) -> None:
    change(folder)
    assert isinstance(load_engine(folder, "onnx"), OnnxEngine)


def truncating(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer(["a cat"], truncation=True, max_length=8, padding="max_length")
    before = (folder / "tokenizer.json").read_bytes()
    tokenizer.save_pretrained(folder)
    assert (folder / "tokenizer.json").read_bytes() != before


def test_a_graph_of_an_earlier_version_is_compared_by_the_digest_of_the_file(tmp_path: Path) -> None:
    folder = copied(SAVED, tmp_path / "model")
    assert isinstance(load_engine(folder, "onnx"), OnnxEngine)
    one_number_of_one_exit(folder)
    os.utime(folder / "model.safetensors", (1, 1))
    with pytest.raises(InvalidInput, match=r"model\.onnx: made of other weights than those beside it; `offramp export"):
        load_engine(folder, "onnx")


# Links.


def linked_into_blobs(source: Path, root: Path) -> Path:
    """As in the cache of the hub, under the name org/model."""
    repository = root / "models--org--model"
    snapshot = repository / "snapshots" / ("0123456789" * 4)
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(snapshot.name)
    for number, path in enumerate(sorted(source.iterdir())):
        blob = repository / "blobs" / f"{number:064x}"
        shutil.copyfile(path, blob)
        (snapshot / path.name).symlink_to(Path("..", "..", "blobs", blob.name))
    return snapshot


def mounted(source: Path, root: Path) -> Path:
    """As a volume of Kubernetes: model.onnx -> ..data/model.onnx, ..data -> ..2026."""
    shutil.copytree(source, root / "..2026")
    (root / "..data").symlink_to("..2026")
    for path in source.iterdir():
        (root / path.name).symlink_to(Path("..data", path.name))
    return root


def data_alone(source: Path, root: Path) -> Path:
    """As DVC does with large files."""
    folder = copied(source, root / "model")
    for path in folder.glob("*.data"):
        path.replace(root / f"{path.name}.in.cache")
        path.symlink_to(root / f"{path.name}.in.cache")
    return folder


def graph_alone(source: Path, root: Path) -> Path:
    folder = copied(source, root / "model")
    (folder / "model.onnx").replace(root / "graph")
    (folder / "model.onnx").symlink_to(root / "graph")
    return folder


def hard_links(source: Path, root: Path) -> Path:
    shutil.copytree(source, root / "before")
    return Path(shutil.copytree(root / "before", root / "model", copy_function=os.link))


def linked_folder(source: Path, root: Path) -> Path:
    (root / "model").symlink_to(copied(source, root / "version 3"))
    return root / "model"


LAYOUTS = [linked_into_blobs, mounted, data_alone, graph_alone, hard_links, linked_folder]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_a_graph_runs_through_links(layout: Callable[[Path, Path], Path], exported: Path, tmp_path: Path) -> None:
    folder = layout(exported, tmp_path)
    for engine in ("onnx", "onnx-int8"):
        assert Predictor.load(folder, engine)(texts(9)) == Predictor.load(exported, engine)(texts(9))
    assert Predictor.load(folder).engine.name == "onnx-float32"


@pytest.fixture
def cache(tmp_path: Path, exported: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The snapshot of org/model in a cache of the hub, and no network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return linked_into_blobs(exported, tmp_path)


def test_a_graph_runs_by_its_name_on_the_hub(cache: Path, exported: Path) -> None:
    predictor = Predictor.load("org/model")
    assert predictor.engine.name == "onnx-float32"
    assert predictor(texts(9)) == Predictor.load(exported, "onnx")(texts(9))


def test_a_stale_graph_is_refused_by_its_name_on_the_hub(cache: Path, warnings: list[str]) -> None:
    one_number_of_one_exit(cache)
    with pytest.raises(InvalidInput, match=r"made of other weights .*; `offramp export FOLDER` makes it anew"):
        load_engine("org/model", "onnx")
    assert Predictor.load("org/model").engine.name == "torch-float32"
    assert len(warnings) == 1


@pytest.mark.parametrize("same", [True, False])
def test_weights_that_are_on_the_hub_alone_are_compared_without_loading_them(
    same: bool, cache: Path, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (cache / "model.safetensors").unlink()
    digest = load_engine(exported, "onnx").graph.metadata.model if same else "0" * 64

    def metadata(url: str) -> object:
        assert url.endswith(f"org/model/resolve/{cache.name}/model.safetensors")
        return type("Metadata", (), {"etag": digest})

    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", metadata)
    if same:
        assert isinstance(load_engine("org/model", "onnx"), OnnxEngine)
    else:
        with pytest.raises(InvalidInput, match="made of other weights than those beside it on the hub"):
            load_engine("org/model", "onnx")


def test_the_reason_why_a_graph_cannot_load_is_not_cut(folder: Path) -> None:
    from offramp.inference.onnx.session import OnnxSession

    (folder / "model.onnx.data").unlink()
    with pytest.raises(InvalidInput) as refused:
        OnnxSession.load(folder / "model.onnx")
    assert len(str(refused.value)) > 300
    assert str(refused.value).endswith(")")
    assert "\n" not in str(refused.value)


# Saving.


def test_the_save_that_makes_a_graph_stale_removes_it_and_says_so(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = MultiExitModel.from_pretrained(folder)
    model.save_pretrained(folder)
    assert isinstance(load_engine(folder, "onnx-int8"), OnnxEngine)
    assert caplog.messages == []
    (folder / "model.int8.onnx").write_bytes(b"somebody's own")
    with torch.no_grad():
        model.heads.classifiers[2].bias[0] += 1e-6
    model.save_pretrained(folder)
    assert not (folder / "model.onnx").exists()
    assert not (folder / "model.onnx.data").exists()
    assert (folder / "model.int8.onnx").read_bytes() == b"somebody's own"
    line = "model.onnx: made of other weights than those beside it; it is removed, `offramp export"
    assert sum(line in message for message in caplog.messages) == 1


def test_switching_the_policy_keeps_what_the_graph_was_made_of(folder: Path) -> None:
    before = read_metadata(folder / "model.onnx")[SOURCE]
    assert switch_policy(folder / "model.onnx", ModelContent(folder).file_digest, {"name": "margin"})
    assert read_metadata(folder / "model.onnx")[SOURCE] == before
    other_class_names(folder)
    with pytest.raises(InvalidInput, match="other class names"):
        load_engine(folder, "onnx")
