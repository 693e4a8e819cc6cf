"""Which threshold, which policy? All of them on one trace, with intervals, in seconds.

Every policy is swept exactly (`offramp.evaluation.sweep`), read at evenly spread mean exits, and bootstrapped over
samples.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from offramp.errors import NotApplicable
from offramp.evaluation.bootstrap import BootstrapCurve, bootstrap_curve
from offramp.evaluation.metrics import metric_for
from offramp.evaluation.oracle import oracle
from offramp.evaluation.sweep import Curve
from offramp.policies.base import Policy
from offramp.policies.fitting import fit_lines, fit_policy, halves
from offramp.policies.registry import FITTED, POLICIES, load_policy
from offramp.types.outputs import predictions
from offramp.types.problem_types import REGRESSION, SINGLE_LABEL
from offramp.types.trace import Trace


@dataclass(frozen=True)
class Comparison:
    """Every policy on the same rows.

    Attributes:
        metric: its name; "agreement" where there are no labels, and the full model's answers stand in for them.
        trace: the rows that were compared on, with labels.
        policies: by name.
        bands: of each policy.
        oracle: see `oracle`; None for regression.
    """

    metric: str
    trace: Trace
    policies: dict[str, Policy]
    bands: dict[str, BootstrapCurve]
    oracle: Curve | None

    @property
    def limits(self) -> tuple[float, float]:
        """The mean exits that every policy reaches, the same for all areas."""
        return max(band.mean_exits[-1].item() for band in self.bands.values()), float(self.trace.layer_numbers[-1])


def compare(trace: Trace, metric: str | None = None, seed: int = 0) -> Comparison:
    """Every policy that has a meaning for a trace, on a half of its rows on which nothing was fitted.

    Args:
        trace: without labels the score is agreement with the full model; for regression its correlation with it.
        metric: a name of `offramp.evaluation.metrics.METRICS`; None = the usual one.
        seed: of the halves and of the resamples.

    Raises:
        InvalidInput: fewer than two rows; a single exit; samples whose scores or logits are not finite.
        NotApplicable: the metric has no meaning for this kind of problem.
    """
    name, _ = metric_for(trace, metric)
    policies, rows = comparison(trace, seed)
    if rows.labels is None:
        name, rows = "agreement" if name == "accuracy" else f"{name} with the full model", against_full(rows)
    bands = {each: bootstrap_curve(rows, policy, metric, seed=seed) for each, policy in policies.items()}
    return Comparison(name, rows, policies, bands, None if rows.problem_type == REGRESSION else oracle(rows, metric))


def comparison(trace: Trace, seed: int = 0) -> tuple[dict[str, Policy], Trace]:
    """Every policy of the table that has a meaning for a trace, with its usual parameters, and the rows to compare on.

    And margin with a threshold for each exit. Consistency, gain and what that needs are fitted on a random half of the
    rows; the other half is for all. Gain needs labels.

    Raises:
        InvalidInput: fewer than two rows; rows whose logits are not finite.
    """
    ours, rest = halves(trace, seed)
    found: dict[str, Policy] = {}
    for name in POLICIES:
        if name == "gain" and trace.labels is None:
            continue
        try:
            policy = fit_policy(name, ours) if name in FITTED else load_policy(name)
            policy.step(0, rest.exit(0), ())
        except NotApplicable:
            continue
        found[name] = policy
    if "margin" in found:
        found["margin, per exit"] = load_policy("margin", **fit_lines("margin", ours))
    return found, rest


def against_full(trace: Trace) -> Trace:
    """The trace with the full model's answers as labels: accuracy is then agreement."""
    last = trace.exit(trace.depth - 1)
    given = last.logits if trace.problem_type == REGRESSION else predictions(last)
    return replace(trace, labels=given.squeeze(-1) if trace.problem_type == SINGLE_LABEL else given)
