"""Do the tokens of a text become more alike with depth? MPEE's figure 1.

    python benchmarks/token_similarity.py --data ../shared/data

The first TEXTS pairs of SNLI's test rows through models that learned SNLI (`lexical_models.py`, seed 0):
MiniLM, and MPNet-base where it was trained. Both kinds of similarity of `offramp.model.token_similarity`, by layer, and
by how much that within a text grows from the first layer to the last, with the middle 95 % of resamples of the texts.
Writes `results/token_similarity.json`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor

from lexical_models import MPNET, Cell
from machine import provenance
from offramp.model.hub import load_tokenizer
from offramp.model.loading import load_model
from offramp.model.token_similarity import token_similarity

TEXTS, DRAWS = 200, 2000
RESULT = Path(__file__).parent / "results" / "token_similarity.json"
MODELS = {"MiniLM": "snli", "MPNet-base": f"{MPNET}snli"}


def interval(values: Tensor) -> list[float]:
    """Return the mean of values (N,) and the middle 95 % of the means of resamples."""
    drawn = torch.randint(len(values), (DRAWS, len(values)), generator=torch.Generator().manual_seed(0))
    low, high = values[drawn].mean(dim=-1).quantile(torch.tensor([0.025, 0.975], dtype=values.dtype)).tolist()
    return [values.mean().item(), low, high]


def main() -> None:
    """Compare tokens in the models that are there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--runs", type=Path, default=Path("runs/lexical"), help="what lexical_models.py trained")
    options = parser.parse_args()
    models = {}
    for name, task in MODELS.items():
        cell = Cell(task, 0, options.data, options.runs)
        if not cell.is_trained():
            continue
        texts = cell.examples(cell.setting.split).texts[:TEXTS]
        found = token_similarity(load_model(cell.folder), load_tokenizer(cell.folder), texts)
        models[name] = {
            "texts": found.within.shape[1],
            "within": found.within.mean(dim=-1).tolist(),
            "between": found.between.tolist(),
            "growth": interval(found.within[-1] - found.within[1]),
        }
    about = provenance()
    RESULT.write_text(json.dumps({"about": about, "models": models}, indent=1) + "\n")


if __name__ == "__main__":
    main()
