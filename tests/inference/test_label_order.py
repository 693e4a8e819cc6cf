"""The order of the classes, on public data: a model that was trained by names reads the same rows by number."""

import gzip
import itertools
import json
from pathlib import Path

import pytest

from offramp.data.columns import Columns
from offramp.data.examples import Examples
from offramp.errors import DataError
from offramp.inference.record import read_for
from offramp.types.problem_types import SINGLE_LABEL
from support.models import tiny_model

DATA = Path(__file__).parents[3] / "shared" / "data"
SETS = ("ag_news", "snli", "mnli", "mrpc", "cola", "trec", "banking77")


@pytest.mark.parametrize("name", SETS)
def test_numbers_are_read_as_the_names_beside_them(name: str, tmp_path: Path) -> None:
    if not DATA.is_dir():
        pytest.skip("the public data sets are not beside the repository")
    names = json.loads((DATA / name / "labels.json").read_text())
    with gzip.open(DATA / name / "validation.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in itertools.islice(lines, 300)]
    source, beside = tmp_path / "rows.jsonl", tmp_path / "labels.json"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = tiny_model(id2label=dict(enumerate(sorted(names))), problem_type=SINGLE_LABEL)  # names are sorted: no order

    def read(**columns: object) -> Examples:
        return read_for(model.config, str(source), Columns(**{"text": "sentence1", "label": "label", **columns}))

    by_name = read(label="label_text").labels
    assert by_name == [sorted(names).index(row["label_text"]) for row in rows]
    with pytest.raises(DataError, match="is a number, the classes have names; say which by --label-names"):
        read()
    assert read(label_names=names).labels == by_name
    beside.write_text(json.dumps(names))
    assert read().labels == by_name
