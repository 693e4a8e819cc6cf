"""The built-in sample keeps what its card promises."""

import json
from collections import Counter
from importlib import resources

SPLITS = ("train", "validation", "test")
ROWS = {
    split: [
        json.loads(line)
        for line in (resources.files("offramp") / "data" / "sample" / f"{split}.jsonl")
        .read_text(encoding="utf-8")
        .splitlines()
    ]
    for split in SPLITS
}
ALL = [row for split in SPLITS for row in ROWS[split]]


def test_there_are_twelve_intents_in_every_split_at_70_15_15() -> None:
    assert len(ALL) >= 1800
    for split, share in zip(SPLITS, (0.70, 0.15, 0.15), strict=True):
        assert abs(len(ROWS[split]) / len(ALL) - share) < 0.01
        assert len(Counter(row["intent"] for row in ROWS[split])) == 12


def test_no_text_is_there_twice() -> None:
    assert max(Counter(" ".join(row["text"].lower().split()) for row in ALL).values()) == 1


def test_texts_have_3_to_70_words_and_urgency_goes_from_0_to_5_in_halves() -> None:
    for row in ALL:
        assert 3 <= len(row["text"].split()) <= 70
        assert row["urgency"] in [half / 2 for half in range(11)]
    assert sum(row["hard"] for row in ALL) >= 250
