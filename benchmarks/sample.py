"""What the built-in sample is like, and that it is neither too easy nor too hard.

    python benchmarks/sample.py

Prints counts, lengths, the most alike pair of messages (character 5-gram Jaccard), and the test accuracy of TF-IDF with
logistic regression; writes `benchmarks/results/sample.json`. `offramp demo --json` gives the fine-tuned encoder's.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from importlib import resources
from itertools import combinations
from pathlib import Path

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from machine import provenance

SPLITS = ("train", "validation", "test")
RESULTS = Path(__file__).parent / "results"


def load() -> dict[str, list[dict[str, object]]]:
    """The rows of every split."""
    folder = resources.files("offramp") / "data" / "sample"
    return {
        split: [json.loads(line) for line in (folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]
        for split in SPLITS
    }


def five_grams(text: str) -> set[str]:
    """Character 5-grams, with case, spaces and punctuation ignored."""
    plain = re.sub(r"\W+", " ", text.lower()).strip()
    return {plain[start : start + 5] for start in range(max(1, len(plain) - 4))}


def most_alike(texts: list[str]) -> float:
    """The largest Jaccard similarity of any two texts."""
    grams = [five_grams(text) for text in texts]
    return max(len(one & other) / len(one | other) for one, other in combinations(grams, 2))


def main() -> None:
    """Count, compare, classify."""
    splits = load()
    rows = [row for split in splits.values() for row in split]
    texts = [str(row["text"]) for row in rows]
    words = sorted(len(text.split()) for text in texts)
    model = make_pipeline(TfidfVectorizer(), LogisticRegression(max_iter=1000))
    model.fit([row["text"] for row in splits["train"]], [row["intent"] for row in splits["train"]])
    results = {
        "about": provenance(),
        "rows": {split: len(split_rows) for split, split_rows in splits.items()},
        "hard": sum(bool(row["hard"]) for row in rows),
        "words": {"least": words[0], "median": words[len(words) // 2], "most": words[-1]},
        "intents": dict(sorted(Counter(str(row["intent"]) for row in rows).items())),
        "urgency": dict(sorted(Counter(float(str(row["urgency"])) for row in rows).items())),
        "most_alike": most_alike(texts),
        "tfidf_accuracy": model.score(
            [row["text"] for row in splits["test"]], [row["intent"] for row in splits["test"]]
        ),
    }
    (RESULTS / "sample.json").write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
