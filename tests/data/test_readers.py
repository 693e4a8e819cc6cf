import bz2
import gzip
import io
import json
import lzma
import re
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from offramp.data.examples import read_rows
from offramp.data.readers import SAMPLE, SPLITS, open_source
from offramp.data.records import Reading
from offramp.errors import DataError

Patch = pytest.MonkeyPatch
Write = Any  # write("a.csv", "text, bytes, or columns") -> name

GOOD, BAD = {"text": "good", "label": "pos"}, {"text": "bad", "label": "neg"}
GOOD_JSON, BAD_JSON = '{"text": "good", "label": "pos"}\n', '{"text": "bad", "label": "neg"}\n'


@pytest.fixture
def write(tmp_path: Path, monkeypatch: Patch) -> Write:
    """Write a file in an empty working directory, so that places are short."""
    monkeypatch.chdir(tmp_path)

    def to(name: str, content: str | bytes | dict[str, Any]) -> str:
        if isinstance(content, dict):
            pq.write_table(pa.table(content), name)
            return name
        raw = content.encode() if isinstance(content, str) else content
        Path(name).write_bytes(gzip.compress(raw) if name.lower().endswith(".gz") else raw)
        return name

    return to


def hub(monkeypatch: Patch, **sets: datasets.Dataset) -> list[Any]:
    """Put a double in the place of `datasets.load_dataset`; what it is asked for lands in the list."""
    asked = list[Any]()

    def load_dataset(path: str, config: str | None, *, split: str) -> datasets.Dataset:
        asked.append((path, config, split))
        if path not in sets:
            raise datasets.exceptions.DatasetNotFoundError(f"Dataset '{path}' doesn't\nexist on the Hub")
        return sets[path]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


def records(source: str, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for record in open_source(source, split).records:
        if record.values is None:
            raise DataError(f"{record.location}: {record.error}")
        yield record.location, record.values


def error_of(source: str) -> str:
    with pytest.raises(DataError) as caught:
        list(records(source, "train"))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("end", ["", ".gz", ".GZ"])
@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("a.csv", "text,label\ngood,pos\nbad,neg\n", {2: GOOD, 3: BAD}),
        ("a.tsv", "text\tlabel\ngood\tpos\nbad\tneg\n", {2: GOOD, 3: BAD}),
        ("a.CSV", "text,label\r\ngood,pos\r\nbad,neg", {2: GOOD, 3: BAD}),
        ("a.csv", 'text\n"two\nlines"\n\nlast\n', {2: {"text": "two\nlines"}, 5: {"text": "last"}}),
        ("a.csv", 'text,label\n"a ""word"", more",1\n', {2: {"text": 'a "word", more', "label": "1"}}),
        ("a.csv", "\ufefftext\nà\n", {2: {"text": "à"}}),
        ("a.tsv", "", {}),
        ("a.json", GOOD_JSON + BAD_JSON, {1: GOOD, 2: BAD}),
        ("a.jsonl", f"\n{GOOD_JSON}  \n{BAD_JSON}\n", {2: GOOD, 4: BAD}),
        ("a.jsonl", '\ufeff{"text": "à"}', {1: {"text": "à"}}),
        ("a.jsonl", "", {}),
        ("a.txt", "one, two\r\n\n{three}\n", {1: {"text": "one, two"}, 2: {"text": ""}, 3: {"text": "{three}"}}),
        ("a.txt", "", {}),
    ],
)
def test_a_file_is_read_by_its_suffix_and_placed_by_line(
    write: Write, name: str, content: str, found: dict[int, Any], end: str
) -> None:
    expected = [(f"{name}{end}, line {line}", record) for line, record in found.items()]
    assert list(records(write(name + end, content), "train")) == expected


def test_a_parquet_file_is_placed_by_row(write: Write) -> None:
    assert list(records(write("a.parquet", {"text": ["a", "b"], "labels": [[1], [0, 1]]}), "train")) == [
        ("a.parquet, row 1", {"text": "a", "labels": [1]}),
        ("a.parquet, row 2", {"text": "b", "labels": [0, 1]}),
    ]
    assert not list(records(write("a.parquet", {"text": []}), "train"))


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("one\ntwo\n", [{"text": "one"}, {"text": "two"}]),
        ("\ufeff" + GOOD_JSON + BAD_JSON, [GOOD, BAD]),
        ("", []),
    ],
)
def test_standard_input_holds_objects_or_a_text_a_line(monkeypatch: Patch, content: str, found: list[Any]) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content.encode())))
    expected = [(f"standard input, line {line}", record) for line, record in enumerate(found, start=1)]
    assert list(records("-", "train")) == expected


@pytest.mark.parametrize("split", SPLITS)
def test_the_sample_is_found_by_name(split: str) -> None:
    place, record = next(records(SAMPLE, split))
    assert place == f"{SAMPLE}:{split}, line 1"
    assert {"text", "intent"} <= record.keys()
    assert next(records(f"{SAMPLE}:{split}", "other")) == (place, record)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.csv", None, "none.csv: no such file"),
        ("none.jsonl.gz", None, "none.jsonl.gz: no such file"),
        ("./none", None, "./none: no such file or folder"),
        ("/none/at/all", None, "/none/at/all: no such file or folder"),
        ("helpdesk:dev", None, "helpdesk: no split 'dev'; expected one of train, validation, test"),
        ("a.csv", "text,label\na,1\nb\n", "a.csv, line 3: 1 fields, where the header has 2"),
        ("a.csv", "text,label\na,1,2\n", "a.csv, line 2: 3 fields, where the header has 2"),
        ("a.csv", "text,label\n", "a.csv: a header and no rows; the first line names the columns"),
        (
            "a.csv",
            'text,label\na,1\n"b\nc,2\n',
            "a.csv, line 3: not csv: unexpected end of data: the quote that opens in",
        ),
        ("a.csv", 'text,label\n"b"c,2\n', "a.csv, line 2: not csv: ',' expected after '\"'"),
        ("a.csv", b"text,label\na,1\n\xe9t\xe9,1\n", "a.csv, line 3: not UTF-8"),
        ("a.jsonl", GOOD_JSON + '{"text":\n', "a.jsonl, line 2: not JSON ("),
        ("a.jsonl", '\n["a", 1]\n', "a.jsonl, line 2: not a JSON object; expected one object a line"),
        ("a.jsonl", "text".encode("utf-16-le"), "a.jsonl: not text; if it is UTF-16, say --encoding utf-16-le or"),
        ("a.parquet", b"PAR1 nothing", "a.parquet: cannot be read as parquet: "),
        ("a.xlsx", b"PK\3\4\0\0", "a.xlsx: a zip archive or a workbook; unpack it, or save the sheet as csv"),
        ("a.csv", b"\xd0\xcf\x11\xe0\xa1\xb1", "a.csv: an old workbook; save the sheet as csv"),
        ("a.csv.bz2", bz2.compress(b"text\n"), "a.csv.bz2: packed by bzip2; unpack it"),
        ("a.csv.xz", lzma.compress(b"text\n"), "a.csv.xz: packed by xz; unpack it"),
        ("a.csv.zst", b"\x28\xb5\x2f\xfd\x24", "a.csv.zst: packed by zstd; unpack it"),
        ("a.part", b"PAR1\x15\x04", "a.part: parquet; say --format parquet"),
        ("a.jsonl", '\n{\n  "text": "a"\n}\n', "a.jsonl, line 2: an object over several lines; write an array"),
        ("a.json", '{"data": [\n{"text": "a"},\n', "a.json, line 1: an object over several lines; write an array"),
        ("a", '{\n  "text": "a"\n}\n', "a, line 1: an object over several lines; write an array"),
        (" ", None, "the name of the source is blank"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_place(
    write: Write, monkeypatch: Patch, name: str, content: Any, message: str
) -> None:
    asked = hub(monkeypatch)
    assert error_of(name if content is None else write(name, content)).startswith(message)
    assert not asked  # a file that is not there is not looked for on the hub


@pytest.mark.parametrize("damage", ["cut", "garbled", "plain"])
def test_a_broken_gz_is_an_error(write: Write, damage: str) -> None:
    raw = gzip.compress(b"text\n" + b"".join(b"%d words\n" % i**2 for i in range(50_000)))
    broken = {"cut": raw[:-2000], "garbled": raw[:100] + bytes(50) + raw[150:], "plain": b"text\n"}
    Path("a.csv.gz").write_bytes(broken[damage])
    assert re.match(r"a\.csv\.gz, line \d+: cannot be read: \w", error_of("a.csv.gz"))


@pytest.mark.parametrize(
    "name",
    ["a.csv.gz", "a.parquet", *(pytest.param(name, marks=pytest.mark.slow) for name in ("a.jsonl.gz", "a.txt"))],
)
def test_many_rows_need_no_more_memory_than_few(write: Write, name: str) -> None:
    rows, words = 50_000, "the same words again and again " * 4  # 6 MB of text
    line = f'{{"text": "{words}"}}\n' if "jsonl" in name else f"{words}\n"
    head = "text\n" if "csv" in name else line
    source = write(name, {"text": [words] * rows} if name == "a.parquet" else head + line * rows)
    next(read_rows(source, labelled=False))  # imports are not what is measured
    tracemalloc.start()
    count = sum(1 for _ in read_rows(source, labelled=False))
    peak = tracemalloc.get_traced_memory()[1]  # bytes
    tracemalloc.stop()
    assert count >= rows
    assert peak < 2_000_000


# Hugging Face data sets


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("imdb", [("imdb", None, "train")]),
        ("imdb:unsupervised[:10%]", [("imdb", None, "unsupervised[:10%]")]),
        ("glue/sst2", [("glue/sst2", None, "train"), ("glue", "sst2", "train")]),
        ("glue/name", [("glue/name", None, "train")]),  # a namespace goes before a config
        ("glue/name/config:test", [("glue/name", "config", "test")]),
    ],
)
def test_a_hub_name_is_namespace_name_config_and_split(monkeypatch: Patch, source: str, expected: list[Any]) -> None:
    data = datasets.Dataset.from_dict({"text": ["good"], "label": ["pos"]})
    asked = hub(monkeypatch, imdb=data, glue=data, **{"glue/name": data})
    assert list(records(source, "train")) == [(f"{source}, row 1", GOOD)]
    assert asked == expected


def test_a_data_set_that_does_not_load_is_named_with_the_reason(monkeypatch: Patch) -> None:
    hub(monkeypatch)
    message = error_of("nobody/nothing:test")
    assert message.startswith("nobody/nothing:test: cannot load this data set: ")
    assert "'nobody/nothing' doesn't exist on the Hub; Dataset 'nobody' doesn't" in message


def test_classes_stay_numbers_and_their_names_are_the_sources(monkeypatch: Patch) -> None:
    classes = datasets.ClassLabel(names=["neg", "pos"])
    features = datasets.Features({"label": classes, "labels": datasets.Sequence(classes)})
    columns = {"label": [1, 0, -1], "labels": [[0, 1], [], [1]]}
    hub(monkeypatch, imdb=datasets.Dataset.from_dict(columns, features=features))
    source = open_source("imdb", "train")
    assert [tuple((record.values or {}).values()) for record in source.records] == [(1, [0, 1]), (0, []), (-1, [1])]
    assert source.class_names == {"label": ("neg", "pos"), "labels": ("neg", "pos")}


def test_a_local_folder_is_a_data_set(write: Write, tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    Path("set").mkdir()
    write("set/train.jsonl", GOOD_JSON)
    write("set/test.jsonl", BAD_JSON)
    assert list(records("set", "train")) == [("set, row 1", GOOD)]
    assert list(records("set", "test")) == [("set, row 1", BAD)]
    assert list(records("set:test", "train")) == [("set:test, row 1", BAD)]
    assert error_of("set:validation").endswith("Should be one of ['train', 'test']; set:SPLIT chooses another")


def test_a_folder_of_csv_is_read_as_its_files_are(write: Write, tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    Path("set/train").mkdir(parents=True)
    write("set/train/a.csv", "text,label\nNone,01\n")
    write("set/train/b.tsv", "label\ttext\nNA\t007\n1.10\n")
    rows = [("set:train, row 1", {"text": "None", "label": "01"}), ("set:train, row 2", {"text": "007", "label": "NA"})]
    opened = open_source("set:train", "test")
    assert [(one.location, one.values) for one in opened.records][:2] == rows
    assert error_of("set").startswith("set, row 3: 1 fields, where the header has 2 (")
    write("set/train/a.csv", "text;label\na;b\n")
    assert [one.values for one in open_source("set", "train", Reading(delimiter=";", format="csv")).records][:1] == [
        {"text": "a", "label": "b"}
    ]
    write("set/labels.json", '["x", "y"]')
    assert open_source("set:train", "test").class_names == open_source("set", "train").class_names == {"": ("x", "y")}
    assert error_of(str(Path("set/train/a.csv:train"))).endswith("a.csv is a file, which has no splits")
    # a card says how to read the files
    features = [{"name": "text", "dtype": "string"}, {"name": "label", "dtype": "int64"}]
    write("set/train/a.csv", "text,label\na,01\n")
    Path("set/train/b.tsv").unlink()
    write("set/README.md", f"---\ndataset_info:\n  features: {json.dumps(features)}\n---\n")
    assert [one.values for one in open_source("set", "train").records] == [{"text": "a", "label": 1}]
