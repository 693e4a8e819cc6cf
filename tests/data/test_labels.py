import csv
import json
import logging
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from offramp.data.columns import Columns
from offramp.data.examples import Examples, read_data, read_examples
from offramp.data.label_names import read_label_names
from offramp.errors import DataError, InvalidInput

ONE, TAGS, NUMBER = "classification", "multi-label", "regression"
NLI = ("entailment", "neutral", "contradiction")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, so that locations are short."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read(labels: list[Any], kind: str = "jsonl", names: Any = None, **arguments: Any) -> Examples:
    """Read labels from a file of one kind; `names` as `--label-names`."""
    columns = arguments.pop("columns", Columns("text", None, "label", names))
    if kind == "jsonl":
        lines = [json.dumps({"text": "a", "label": label}) for label in labels]
        Path("a.jsonl").write_text("\n".join(lines))
    elif kind == "csv" and labels:
        with open("a.csv", "w", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *(("a", label) for label in labels)])
    return read_examples(f"a.{kind}", columns, **{"split": "train", **arguments})


def refusal(*arguments: Any, **more: Any) -> str:
    """Return the line that refuses labels; without `pytest.raises`, whose traceback keeps the file open."""
    try:
        read(*arguments, **more)
    except InvalidInput as error:
        lines = str(error).splitlines()
    else:
        pytest.fail("nothing was refused")
    (line,) = lines
    return line


# Numbers and names


@pytest.mark.parametrize(
    ("beside", "asked", "known", "labels", "names", "ids"),
    [
        (NLI, None, None, [2, 0, 2], NLI, [2, 0, 2]),  # the order of labels.json, a class without rows included
        (NLI, None, None, ["contradiction", "neutral"], NLI, [2, 1]),
        (NLI, None, sorted(NLI), [0, 1, 2], tuple(sorted(NLI)), [1, 2, 0]),
        (None, NLI, None, ["2", "0.0", "1"], NLI, [2, 0, 1]),
        (None, NLI, sorted(NLI), [0, "1", 2.0, "neutral"], tuple(sorted(NLI)), [1, 2, 0, 2]),
        (NLI, {"0": "x", "1": "y", "2": "z"}, None, [0, 2], ("x", "y", "z"), [0, 2]),  # a mapping overrules
        (None, {1: "one", 2: "two"}, None, [2, 1], ("one", "two"), [1, 0]),
        (None, {"2": "b", "10": "c", "-1": "a"}, None, [-1, 10, 2], ("a", "b", "c"), [0, 2, 1]),
        (None, {"neg": "NEG"}, ["NEG", "POS"], ["neg", "NEG", "POS"], ("NEG", "POS"), [0, 0, 1]),
        (None, "no,yes", None, [1, 0], ("no", "yes"), [1, 0]),
        (None, {"NEG": "neg", "neg": "neg", "pos": "pos"}, None, ["NEG", "neg", "pos"], ("neg", "pos"), [0, 0, 1]),
        (None, ["no", "yes"], None, [True, False], ("no", "yes"), [1, 0]),
        (None, {"1": "yes", "0": "no"}, ["yes", "no"], ["yes", 1, 0], ("yes", "no"), [0, 0, 1]),
        # names that are numbers
        (("1", "2", "3"), None, None, [0, 2], ("1", "2", "3"), [0, 2]),
        (None, ["1", "2", "3"], None, [1, 3, 2], ("1", "2", "3"), [0, 2, 1]),
        (("0", "1", "2"), None, None, [0, 2], ("0", "1", "2"), [0, 2]),
        # classes without names are met by number
        (None, None, ["0", "1", "2"], [2, "0"], ("0", "1", "2"), [2, 0]),
        (NLI, None, ["0", "1", "2"], [2, 0], ("0", "1", "2"), [2, 0]),
        (NLI, None, ["0", "1", "2"], ["neutral", "entailment"], ("0", "1", "2"), [1, 0]),
        (None, NLI, ["LABEL_0", "LABEL_1", "LABEL_2"], [2, "neutral"], ("LABEL_0", "LABEL_1", "LABEL_2"), [2, 1]),
        (None, None, ["LABEL_0", "LABEL_1"], [1, 0], ("LABEL_0", "LABEL_1"), [1, 0]),
        # names of another column
        (NLI, None, None, [7, 4], ("4", "7"), [1, 0]),
        (NLI, None, None, ["fine", "coarse"], ("coarse", "fine"), [1, 0]),
    ],
)
def test_a_number_means_the_class_that_the_source_or_the_user_names(
    beside: Any, asked: Any, known: Any, labels: list[Any], names: tuple[str, ...], ids: list[int]
) -> None:
    if beside is not None:
        Path("labels.json").write_text(json.dumps(beside))
    examples = read(labels, names=asked, label_names=known)
    assert (examples.label_names, examples.labels) == (names, ids)


@pytest.mark.parametrize(
    ("beside", "asked", "known", "labels", "message"),
    [
        (
            None,
            None,
            NLI,
            [0, 1],
            "line 1: the label 0 is a number, the classes have names; say which by --label-names, in the order 0, 1",
        ),
        (None, None, ["no", "yes"], ["yes", 1], "line 2: the label 1 is a number"),
        (
            None,
            None,
            ["NEG", "POS"],
            ["neg"],
            "unknown label 'neg', the model has 'NEG'; --label-names with a JSON file",
        ),
        (None, None, ["0", "1"], ["yes", "no"], "line 1: unknown label 'yes'; expected one of '0', '1'"),
        (None, ["a", "b"], NLI, [1], "line 1: unknown label '1', named 'b'; expected one of 'entailment'"),
        (None, ["a", "b"], None, [0, 2], "line 2: unknown label '2'; --label-names says 0 = a, 1 = b"),
        (None, ["1", "2", "3"], None, [1, 2], "the label 1 can be a name or the number of '2' (--label-names)"),
        (
            NLI,
            sorted(NLI),
            None,
            [1],
            "the data says 0 = entailment, 1 = neutral, 2 = contradiction, --label-names 0 = c",
        ),
        (None, [], None, [0, 1], "--label-names names no class"),
        (None, ["a", "a"], None, [0, 1], "two classes are named 'a'; each needs a name of its own"),
        (None, ["a", ""], None, [0, 1], "a class needs a name, --label-names has ''"),
    ],
)
def test_a_number_without_a_meaning_is_refused(
    beside: Any, asked: Any, known: Any, labels: list[Any], message: str
) -> None:
    if beside is not None:
        Path("labels.json").write_text(json.dumps(beside))
    assert message in refusal(labels, names=asked, label_names=known)


@pytest.mark.parametrize(
    ("beside", "names"),
    [
        ({"0": "b", "1": "a"}, ("b", "a")),
        ({"a": 1, "b": 0}, ("b", "a")),
        ({"1": "b", "2": "a"}, ("0", "1")),  # no class 0
        ({"images": [], "version": 1}, ("0", "1")),
        (["b", "b"], ("0", "1")),
        ("b", ("0", "1")),
    ],
)
def test_a_file_of_names_beside_the_data_is_a_list_or_a_mapping(beside: Any, names: tuple[str, ...]) -> None:
    Path("labels.json").write_text(json.dumps(beside))
    assert read([0, 1]).label_names == names


def test_names_of_classes_are_not_for_a_regression() -> None:
    assert "--label-names names classes" in refusal([1.5, 2], names=["a", "b"], task=NUMBER)


@pytest.mark.parametrize(
    ("labels", "asked", "messages"),
    [
        ([1, 0], ["no", "yes"], ["a.jsonl: classes 0 = no, 1 = yes"]),
        (
            ["NEG", "neg", "x"],
            None,
            ["a.jsonl: NEG and neg are classes of their own; a JSON file of --label-names joins them"],
        ),
        (["nan", "NA", "en"], None, ['a.jsonl: "NA", "nan" is taken for a class, as the others are names']),
        (["1.0", "0"], None, ["a.jsonl: 1.0 is read as 1, as pandas writes integers", "a.jsonl: classes 0, 1"]),
        (["b ", "a"], None, ["a.jsonl: blanks around labels, such as 'b ', do not count"]),
        (
            ["a", 1],
            None,
            ["a.jsonl: the numbers 1 beside names are classes of their own; --label-names says what they mean"],
        ),
        ([-1, 1], None, ["a.jsonl: -1 is taken for a class; leave a label empty where it is unknown"]),
        (
            ["1.5", "2"],
            None,
            ["a.jsonl: labels such as 1.5 are taken for names of classes; --task regression reads numbers"],
        ),
        ([0, 1, 2, -1, -1], None, ["a.jsonl: 2 of 5 rows are left out, they have no label (-1)"]),
    ],
)
def test_the_reading_that_was_taken_is_logged(
    caplog: pytest.LogCaptureFixture, labels: list[Any], asked: Any, messages: list[str]
) -> None:
    caplog.set_level(logging.INFO, logger="offramp")
    read(labels, names=asked)
    assert set(messages) <= set(caplog.messages)


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ("a, b,c", ["a", "b", "c"]),
        ('a, b, "c, d", e "f"', ["a", "b", "c, d", 'e "f"']),
        ('["a", "b, c"]', ["a", "b, c"]),
        ('\ufeff{"1": "a", "2": "b"}', {"1": "a", "2": "b"}),
        ('{"a": 0, "b": 1}', {"0": "a", "1": "b"}),
        ('{"model_type": "bert", "id2label": {"0": "a", "1": "b"}}', {"0": "a", "1": "b"}),
        ("a\r\nb c\r\n\r\n", ["a", "b c"]),
    ],
)
def test_names_are_read_from_an_option_or_a_file(content: str, names: Any) -> None:
    Path("names").write_text(content, encoding="utf-8", newline="")
    assert read_label_names(content if content.startswith("a, b") else "names") == names


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1, ", "names.json: not a file of names"),
        (
            '{"a": 0, "b": 0}',
            "names.json: expected a list of names, or a mapping from numbers to names with each number",
        ),
        ('[["a"], ["b"]]', r"a class needs a name, --label-names has \['a'\]"),
        (None, "names.json: no such file; --label-names takes a,b,c or a file of names"),
    ],
)
def test_a_file_without_names_is_refused(content: str | None, message: str) -> None:
    if content is not None:
        Path("names.json").write_text(content)
    with pytest.raises(InvalidInput, match=message):
        read([0, 1], names=read_label_names("names.json"))


# Spelling


@pytest.mark.parametrize(
    ("labels", "known", "names", "ids"),
    [
        (["1.1", "1.10", "2.3"], None, ("1.1", "1.10", "2.3"), [0, 1, 2]),
        (["1.0", "1.1", "1"], None, ("1", "1.0", "1.1"), [1, 2, 0]),
        (["+1", "1", "1e3", "1_000"], None, ("+1", "1", "1_000", "1e3"), [0, 1, 3, 2]),
        (["038.11", "V45", "038.1"], None, ("038.1", "038.11", "V45"), [1, 2, 0]),
        (["01", "02", "10"], None, ("01", "02", "10"), [0, 1, 2]),
        ([" 7", "8", "7 "], None, ("7", "8"), [0, 1, 0]),
        (["10", "9", "2.0"], None, ("2", "9", "10"), [2, 1, 0]),
        (["1.0", "0.0"], ["0", "1"], ("0", "1"), [1, 0]),
        (["1.0", "1"], ["1.0", "1"], ("1.0", "1"), [0, 1]),
        (["NA", "None", "nan", "de"], None, ("NA", "None", "de", "nan"), [0, 1, 3, 2]),
        (["nan", "1"], ["1", "nan"], ("1", "nan"), [1, 0]),
    ],
)
def test_labels_in_cells_keep_their_spelling(labels: list[str], known: Any, names: tuple[str, ...], ids: Any) -> None:
    examples = read(labels, "csv", label_names=known)
    assert (examples.label_names, examples.labels) == (names, ids)


@pytest.mark.parametrize("label", ["nan", "NA", "None", "<NA>"])
def test_a_missing_number_is_no_class(label: str) -> None:
    message = f'a.csv, line 3: the label is missing ("{label}" beside numbers)'
    assert refusal(["1", label, "0"], "csv") == refusal(["1", label], "csv", label_names=["0", "1"]) == message


@pytest.mark.parametrize("label", ["01", "+1", "1e0", "1.00"])
def test_another_spelling_of_a_number_is_another_class(label: str) -> None:
    assert f"unknown label '{label}'" in refusal([label], "csv", label_names=["1", "2"])


# No label


def test_rows_of_minus_one_are_left_out() -> None:
    for labels, known, names in (
        ([2, -1, 0, "-1", -1.0, 1], None, None),
        ([1, -1, 0, "-1", "-1.0", 2], ["0", "1", "2"], None),
        ([1, -1, 0, -1, -1, 2], None, ["a", "b", "c"]),
        (["a", -1, "b", -1, -1, "c"], ["a", "b", "c"], None),
    ):
        examples = read(labels, names=names, label_names=known)
        assert (len(examples), len(examples.label_names), examples.rows) == (3, 3, (0, 2, 5))


def test_lists_of_minus_one_are_no_labels() -> None:
    examples = read([[1, 0, 0], [-1, -1, -1], [0, 1, 1]], task=TAGS)
    assert (examples.labels, examples.rows) == ([[1, 0, 0], [0, 1, 1]], (0, 2))


def test_minus_one_is_a_class_where_it_is_named_or_no_number_is_zero() -> None:
    assert read([-1, 1]).label_names == ("-1", "1")
    assert read([-1, 0, 1], names={"-1": "no", "0": "both", "1": "yes"}).labels == [0, 1, 2]
    assert read([-1, 1], label_names=["-1", "1"]).labels == [0, 1]
    assert read(["-1", "-2", "0"]).label_names == ("-2", "-1", "0")


def test_minus_one_beside_zero_and_one_is_refused() -> None:
    assert '-1 beside 0 and 1 can be a class, or mean "no label"; --label-names no,yes' in refusal([-1, 0, 1])
    assert read([-1, 0, 1], names=["no", "yes"]).labels == [0, 1]


def test_a_split_of_minus_one_has_no_labels() -> None:
    assert (
        refusal([-1, -1]) == "a.jsonl: this split has no labels, all are -1 or empty; choose another, e.g. with --split"
    )
    assert "this split has no labels" in refusal(["-1", "-1"], "csv", label_names=["a", "b"])


def test_rows_of_minus_one_alone_are_texts_where_labels_are_not_needed() -> None:
    refusal([-1, "-1"])
    assert read_data("a.jsonl", split="test") == ["a", "a"]
    assert read_data("a.jsonl", split="test", label_names=["-1", "1"]).labels == [0, 0]
    assert read_data("a.jsonl", split="test", task=NUMBER).labels == [-1, -1]


# Data sets that name their classes


def nli(kind: str, labels: list[Any], feature: Any = None) -> str:
    features = {"text": datasets.Value("string"), "label": feature or datasets.ClassLabel(names=list(NLI))}
    rows = {"text": ["a"] * len(labels), "label": labels}
    data = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
    if kind == "disk":
        data.save_to_disk("nli")
        return "nli"
    Path("nli").mkdir()
    data.to_parquet("a.parquet" if kind == "parquet" else "nli/test-00000-of-00001.parquet")
    return "a.parquet" if kind == "parquet" else "nli"


@pytest.mark.parametrize("kind", ["folder", "parquet", "disk"])
def test_a_data_set_keeps_the_order_of_its_classes(kind: str) -> None:
    source = nli(kind, [2, 0, -1, None])
    examples = read_examples(source, split="test")
    assert (examples.label_names, examples.labels, examples.rows) == (NLI, [2, 0], (0, 1))
    assert read_examples(source, Columns(label=("label",)), split="test").rows == (0, 1)
    known = read_examples(source, split="test", label_names=sorted(NLI))
    assert known.labels == [0, 1]
    renamed = read_examples(source, Columns(label_names=["a", "b", "c"]), split="test")
    assert (renamed.label_names, renamed.labels) == (("a", "b", "c"), [2, 0])


def test_a_split_with_secret_labels_is_named() -> None:
    with pytest.raises(DataError, match=r"^nli:test: this split has no labels"):
        read_examples(nli("folder", [-1, -1]), split="test")


# Several labels

HOT = [[1, 0, 0], [0, 1, 1], [0, 0, 0]]


@pytest.mark.parametrize(
    ("labels", "names", "known", "classes", "vectors"),
    [
        (HOT, None, None, ("0", "1", "2"), HOT),
        (HOT, ["a", "b", "c"], None, ("a", "b", "c"), HOT),
        (HOT, ["a", "b", "c"], ["c", "b", "a"], ("c", "b", "a"), [row[::-1] for row in HOT]),
        (HOT, None, ["0", "1", "2"], ("0", "1", "2"), HOT),
        ([[1.0, 0.0], [0.0, 1.0]], None, None, ("0", "1"), [[1, 0], [0, 1]]),
        ([[True, False], [False, True]], None, None, ("0", "1"), [[1, 0], [0, 1]]),
        ([[True], [False]], None, None, ("0",), [[1], [0]]),
        ([[1, 0], [0, 0]], None, None, ("0", "1"), [[1, 0], [0, 0]]),
        # lists of class numbers
        ([[0, 1], [1]], None, None, ("0", "1"), [[1, 1], [0, 1]]),
        ([[0, 5], [1, 2]], None, None, ("0", "1", "2", "5"), [[1, 0, 0, 1], [0, 1, 1, 0]]),
        ([[0, 1], [1, 0]], None, ["0", "1", "2"], ("0", "1", "2"), [[1, 1, 0], [1, 1, 0]]),
        ([[2], [0, 1]], ["a", "b", "c"], None, ("a", "b", "c"), [[0, 0, 1], [1, 1, 0]]),
        ([["0"], ["1"]], None, None, ("0", "1"), [[1, 0], [0, 1]]),
        # cells
        (["[0, 1, 1]", "[1, 0, 0]"], None, None, ("0", "1", "2"), [[0, 1, 1], [1, 0, 0]]),
        (["[0 1 1]", "[1. 0. 0.]"], None, None, ("0", "1", "2"), [[0, 1, 1], [1, 0, 0]]),
        (["['a' 'b']", "['b']", "[]"], None, None, ("a", "b"), [[1, 1], [0, 1], [0, 0]]),
        (["['a', 'b']", '["b"]', "[]"], None, None, ("a", "b"), [[1, 1], [0, 1], [0, 0]]),
        (["a|b", "b", " a | c "], None, None, ("a", "b", "c"), [[1, 1, 0], [0, 1, 0], [1, 0, 1]]),
        (["0|1|1", "1|0|0"], None, None, ("0", "1", "2"), [[0, 1, 1], [1, 0, 0]]),
        (["a", "b"], None, ["a", "b"], ("a", "b"), [[1, 0], [0, 1]]),
        (["a|b", "c|a|b"], None, ["a|b", "a", "b", "c"], ("a|b", "a", "b", "c"), [[1, 0, 0, 0], [0, 1, 1, 1]]),
        # by name
        ([{"a": 1, "b": 0}, {"b": 1, "a": 1}], None, None, ("a", "b"), [[1, 0], [1, 1]]),
    ],
)
def test_lists_vectors_and_cells_are_labels(
    labels: list[Any], names: Any, known: Any, classes: tuple[str, ...], vectors: Any
) -> None:
    for kind in ["jsonl", *(["csv"] if isinstance(labels[0], str) else [])]:
        examples = read(labels, kind, names=names, label_names=known, task=TAGS)
        assert (examples.label_names, examples.labels) == (classes, vectors)


def test_vectors_in_parquet_are_labels() -> None:
    for values in (np.eye(3, dtype=np.float32), np.eye(3, dtype=bool), np.eye(3, dtype=np.int64)):
        data = datasets.Dataset.from_dict({"text": ["a"] * 3, "label": [*values]})
        data.to_parquet("a.parquet")
        assert read([], "parquet", task=TAGS).labels == np.eye(3).tolist()


@pytest.mark.parametrize(
    ("labels", "names", "known", "message"),
    [
        (
            [[0, 1], [1, 0]],
            None,
            None,
            "line 1: [0, 1] can be a vector of 0 and 1 or a list of class numbers, in all rows",
        ),
        ([[0], [1]], ["a"], None, "line 1: [0] can be a vector"),
        (HOT, None, ["a", "b", "c"], "a.jsonl: the label 0 is a number, the classes have names"),
        (HOT, ["a", "b"], None, "3 labels a row, where 2 classes are named"),
        ([[1, 0, 0], [0, 1]], None, None, "line 2: a vector of 3 zeros and ones is expected"),
        (
            [[0.1, 0.9, 0.0]],
            None,
            None,
            "line 1: 0.1 is neither 0 nor 1; soft labels are not read: round them to 0 or 1",
        ),
        (["[0.1, 0.9]"], None, None, "line 1: 0.1 is neither 0 nor 1; soft labels are not read"),
        ([[0, 1, 1], [-1, 0, 1]], None, None, "line 2: -1 is neither 0 nor 1"),
        ([[-1, -1], [-1]], None, None, "a.jsonl: this split has no labels"),
        (["[0, 1"], None, None, "line 1: not a list of labels: '[0, 1'"),
        (["a;b"], None, None, "line 1: multi-label needs a list of labels in every row, found 'a;b'"),
        ([{"a": 1, "b": 2}], None, None, 'line 1: "b" must be 0 or 1, found 2'),
        ([{"a": 1, "b": 0}, {"a": 1}], None, None, "line 2: 0 or 1 is expected for each of a, b, found {'a': 1}"),
    ],
)
def test_labels_that_can_be_read_in_two_ways_are_refused(
    labels: list[Any], names: Any, known: Any, message: str
) -> None:
    assert message in refusal(labels, names=names, label_names=known, task=TAGS)


def test_names_beside_a_file_of_vectors_are_used_where_they_are_as_many(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="offramp")
    Path("labels.json").write_text('["a", "b", "c"]')
    assert read(HOT, task=TAGS).label_names == ("a", "b", "c")
    assert read([[1, 0], [0, 0]], task=TAGS).label_names == ("0", "1")
    assert "a.jsonl: labels.json is not used: it names 3 classes of 2" in caplog.messages
    assert read([{"x": 1, "y": 0}, {"x": 0, "y": 1}], task=TAGS).label_names == ("x", "y")


@pytest.mark.parametrize("label", [[0, 1], "[0, 1]", {"a": 1}])
def test_a_list_of_labels_needs_its_task(label: Any) -> None:
    assert "--task multi-label" in refusal([label, label])


JIGSAW = "id,comment_text,toxic,obscene,threat\n1,you,1,1,0\n2,nice,0,0.0,0\n3,day,-1,-1,-1\n"


@pytest.mark.parametrize(
    ("columns", "names", "known", "classes", "vectors"),
    [
        (("toxic", "obscene", "threat"), None, None, ("toxic", "obscene", "threat"), [[1, 1, 0], [0, 0, 0]]),
        (("threat", "toxic"), None, ["toxic", "threat"], ("toxic", "threat"), [[1, 0], [0, 0]]),
        (("threat", "toxic"), ["a", "b"], None, ("a", "b"), [[0, 1], [0, 0]]),
        (("threat", "toxic"), ["toxic", "threat"], None, ("toxic", "threat"), [[1, 0], [0, 0]]),
    ],
)
def test_columns_of_zeros_and_ones_are_labels(
    columns: tuple[str, ...], names: Any, known: Any, classes: tuple[str, ...], vectors: Any
) -> None:
    Path("jig.csv").write_text(JIGSAW)
    examples = read_examples(
        "jig.csv",
        Columns("comment_text", label=columns, label_names=names),
        split="train",
        task=TAGS,
        label_names=known,
    )
    assert (examples.label_names, examples.labels, examples.rows) == (classes, vectors, (0, 1))


@pytest.mark.parametrize(
    ("columns", "task", "known", "message"),
    [
        (("toxic", "toxic"), TAGS, None, "a column is named twice for the labels: toxic, toxic"),
        (("toxic", "rude"), TAGS, None, 'no column "rude"'),
        (("toxic", "threat"), TAGS, ["toxic", "threat", "obscene"], "2 labels a row, where 3 classes are named"),
        (("toxic", "id"), TAGS, None, "a.csv, line 3: \"id\" must be 0 or 1, found '2'"),
        (("toxic", "threat"), ONE, None, "labels by column are for --task multi-label"),
    ],
)
def test_columns_that_are_no_labels_are_refused(columns: tuple[str, ...], task: str, known: Any, message: str) -> None:
    Path("a.csv").write_text(JIGSAW)
    wanted = Columns("comment_text", label=columns)
    assert message in refusal([], "csv", columns=wanted, task=task, label_names=known)


def test_columns_in_which_1_means_no_are_refused() -> None:
    names = {"toxic": ["no", "yes"], "threat": ["Yes", "No"]}
    features = {name: datasets.ClassLabel(names=pair) for name, pair in names.items()} | {"t": datasets.Value("string")}
    rows = {"t": ["a", "b"], "toxic": [1, 0], "threat": [0, 1]}
    datasets.Dataset.from_dict(rows, features=datasets.Features(features)).to_parquet("a.parquet")
    wanted = Columns("t", label=("toxic", "threat"))
    message = "a.parquet: in \"threat\" 0 is 'Yes' and 1 is 'No'; write 1 for what is there"
    assert refusal([], "parquet", columns=wanted, task="multi-label") == message


def test_several_columns_are_several_values_of_a_regression() -> None:
    Path("jig.csv").write_text(JIGSAW)
    examples = read_examples("jig.csv", Columns("comment_text", label=("toxic", "id")), split="train", task=NUMBER)
    assert examples.labels == [[1, 1], [0, 2], [-1, 3]]
