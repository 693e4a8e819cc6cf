"""Models with rows and their trace, and thresholds clear of noise, for the contract tests of every runtime."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from offramp.errors import NotApplicable
from offramp.inference.record import record
from offramp.model.modeling import MultiExitModel
from offramp.model.token_exit.config import TokenExit
from offramp.policies.base import Policy
from offramp.policies.registry import FITTED, POLICIES, load_policy
from offramp.policies.replay import scores
from offramp.types.problem_types import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from offramp.types.trace import Trace
from support.models import IMAGES, LAYERS, TEXTS, VOCABULARY, rows_for, tiny_model
from support.traces import LINES, OFFSETS, fitted

ROWS = 66
NOISE = 1e-5
OUTPUTS = {SINGLE_LABEL: 3, MULTI_LABEL: 3, REGRESSION: 1}
POISON = VOCABULARY - 1  # no row has it by itself
LEAVING = TokenExit(keep_ratio={1: 0.6, 3: 0.5})

Rows = list[dict[str, Any]]

# every row of the table, and those with parameters that change the answer or what is remembered
CHOICES: dict[str, dict[str, Any]] = {
    **{name: {"name": name} for name in sorted(POLICIES) if name not in FITTED},
    **{name: fitted(name, exits=LAYERS) for name in FITTED},
    "consistency of values": fitted("consistency", REGRESSION, LAYERS),
    "margin, tempered": {"name": "margin", "temperatures": (2.0, 0.5, 1.5, 1.0)},
    "margin, per exit": {"name": "margin", "lines": LINES[:LAYERS]},
    "entropy, by class": {"name": "entropy", "offsets": OFFSETS},
    "divergence, js in a row": {"name": "divergence", "divergence": "js", "patience": 2, "window": "consecutive"},
    "entropy, all": {"name": "entropy", "ensemble": "all"},
    "patience, run": {"name": "patience", "ensemble": "run"},
    "pcee, run": {"name": "pcee", "ensemble": "run"},
    "stability, run": {"name": "stability", "ensemble": "run"},
}


def applies(name: str, problem: str) -> bool:
    trace = Trace(torch.zeros(LAYERS, 2, OUTPUTS[problem]), problem_type=problem)
    try:
        scores(load_policy(CHOICES[name]), trace)
    except NotApplicable:
        return False
    return True


@dataclass(frozen=True)
class Case:
    model: MultiExitModel
    rows: Rows
    trace: Trace


def build(family: str, problem: str, device: str = "cpu", **exits: Any) -> Case:
    exits = {"pooling": "mean"} | exits
    model = tiny_model(family, OUTPUTS[problem], problem_type=problem, **exits).to(device)
    for branch in model.bypasses:  # shut at the start
        torch.nn.init.normal_(branch.up.weight)
    rows = rows_for(model, ROWS)
    return Case(model, rows, record(model, rows, batch_size=16))


def midpoint_near(score: Tensor, quantile: float) -> float:
    """Midway between the two neighbouring scores around a quantile of (L-1, N) scores."""
    values = score[score.isfinite()].double().unique()
    if len(values) == 1:
        return values.item() + 0.5
    below = min(int(quantile * (len(values) - 1)), len(values) - 2)
    return ((values[below] + values[below + 1]) / 2).item()


def clear_of_noise(case: Case, policy: Policy, thresholds: Sequence[float]) -> Tensor:
    """Return (N,) bool: the scores are not near the thresholds, and the answers are not near a tie."""
    score = scores(policy, case.trace)[:-1].double()
    near = ((score - torch.tensor(thresholds, dtype=torch.float64)[:, None]).abs() < NOISE).any(dim=0)
    if case.trace.problem_type == REGRESSION:
        return ~near
    if case.trace.problem_type == MULTI_LABEL:
        return ~near & (case.trace.logits.abs() > NOISE).all(dim=-1).all(dim=0)
    best = case.trace.logits.topk(2, dim=-1).values  # (L, N, 2)
    return ~near & (best[..., 0] - best[..., 1] > NOISE).all(dim=0)


def poisoned(family: str, problem: str, token_exit: TokenExit | None) -> tuple[Case, Tensor]:
    """Return a case whose rows 3, 20 and 41 turn to NaN at the embedding, and (N,) True for these."""
    model = tiny_model(family, OUTPUTS[problem], pooling="mean", token_exit=token_exit)
    rows = rows_for(model, ROWS)
    for number in (3, 20, 41):
        if family in IMAGES:
            rows[number]["pixel_values"][0, 0, 0] = torch.nan
        else:
            rows[number]["input_ids"][0] = POISON
    with torch.no_grad():
        if family in TEXTS:
            model.backbone.get_input_embeddings().weight[POISON] = torch.nan
    sick = torch.zeros(ROWS, dtype=torch.bool)
    sick[[3, 20, 41]] = True
    return Case(model, rows, record(model, rows, batch_size=16)), sick
