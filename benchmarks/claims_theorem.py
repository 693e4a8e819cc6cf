"""PABEE's Theorem 1 on real layers: where it promises a gain, is there one?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from claims_elsewhere import ABSENT, row
from claims_measure import interval, resampled_score, rounded
from claims_page import HIGHER
from offramp.evaluation.patience_theorem import Setting, conditions
from offramp.policies.patience import Patience
from offramp.policies.replay import answers_at, run_policy
from offramp.studies.selection import EvaluationSplit


def promised_gain(split: EvaluationSplit, counts: Tensor) -> tuple[Tensor, list[int]] | None:
    """Return the gain of patience over the last exit, (1 + DRAWS,) in points, and the patiences that are promised one.

    The mean over these patiences. q is the mean error of all exits but the last, as the theorem has one for all.
    """
    split = replace(split, metrics=("accuracy",))
    errors, exits = [1 - score for score in split.exit_scores()], split.trace.depth
    internal = exits - 1
    settings = [Setting(internal, patience, mean(errors[:-1]), errors[-1]) for patience in range(1, internal)]
    promised = [setting.patience for setting in settings if conditions(setting)["theorem"]]
    if not promised:
        return None
    ran = run_policy(Patience(), split.trace)
    last = resampled_score(split, split.trace.logits[-1], counts)
    gains = [resampled_score(split, answers_at(split.trace, *ran, float(t)).logits, counts) - last for t in promised]
    return 100 * torch.stack(gains).mean(dim=0), promised


def theorem_row(models: Mapping[str, Iterable[tuple[EvaluationSplit, Tensor]]]) -> dict[str, Any]:
    """Return the line of the claim.

    Args:
        models: by case, the rows of each seed's model with how often they are drawn.
    """
    tasks, promises = {}, []
    for name, seeds in models.items():
        found = [gain for gain in (promised_gain(split, counts) for split, counts in seeds) if gain is not None]
        if found:
            tasks[name] = torch.stack([draws for draws, _ in found])
            promises += [f"{name} {min(patiences)} to {max(patiences)}" for _, patiences in found[:1]]
    figures: dict[str, Any] = ABSENT
    if tasks:
        by_seed = [draws[:, 0] for draws in tasks.values()]
        seeds_of = [values.expand(max(map(len, by_seed))) for values in by_seed]
        figures = {
            **interval(torch.stack([draws.mean(dim=0) for draws in tasks.values()]).mean(dim=0)),
            "seeds": rounded(torch.stack(seeds_of).mean(dim=0).tolist()),
            "tasks": {name: {**interval(draws.mean(dim=0)), "unit": "points"} for name, draws in tasks.items()},
        }
    return row(
        "pabee-19",
        "The inequality is easily satisfied in practice, and then patience is more accurate than the last exit.",
        "3.4",
        "t ≥ 4 of 12 is enough",
        HIGHER,
        figures,
        "claims.py",
        "claims.json",
        "Accuracy, mean over all patiences that the theorem promises a gain for, with q the mean error of the exits "
        f"before the last: {', '.join(promises)}. Real exits share their errors and are not equally good; the "
        "theorem excludes both.",
    )
