"""Compare all policies on one trace, with intervals, in seconds.

Every policy is swept exactly (`offramp.evaluation.sweep`), sampled at evenly spread mean exits, and bootstrapped over
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
    """Curves of every policy on the same rows.

    Attributes:
        metric: its name; "agreement" where there are no labels and the full model's answers replace them.
        trace: the rows of the comparison, with labels.
        policies: by name.
        bands: the curve of each policy, by name.
        oracle: the bound of `offramp.evaluation.oracle`; None for regression.
    """

    metric: str
    trace: Trace
    policies: dict[str, Policy]
    bands: dict[str, BootstrapCurve]
    oracle: Curve | None

    @property
    def limits(self) -> tuple[float, float]:
        """Return the lowest and the highest mean exit that every policy reaches, for areas under all curves."""
        return max(band.mean_exits[-1].item() for band in self.bands.values()), float(self.trace.layer_numbers[-1])


def compare(trace: Trace, metric: str | None = None, seed: int = 0) -> Comparison:
    """Compare every policy that has a meaning for a trace, on a half of its rows on which nothing was fitted.

    Args:
        trace: without labels the score is agreement with the full model; for regression its correlation with it.
        metric: a name of `offramp.evaluation.metrics.METRICS`; None = the default one.
        seed: of the halves and of the resamples.

    Raises:
        InvalidInput: fewer than two samples; a single exit; samples whose score is NaN or whose logits are not finite.
        NotApplicable: the metric has no meaning for this kind of problem.

    Example:
        >>> comparison = offramp.compare(trace)
        >>> comparison.metric, len(comparison.trace)
        ('accuracy', 50)
        >>> sorted(comparison.policies)
        ['certainty', 'consistency', ...]
    """
    name, _ = metric_for(trace, metric)
    policies, rows = comparison(trace, seed)
    if rows.labels is None:
        name, rows = "agreement" if name == "accuracy" else f"{name} with the full model", against_full(rows)
    bands = {key: bootstrap_curve(rows, policy, metric, seed=seed) for key, policy in policies.items()}
    return Comparison(name, rows, policies, bands, None if rows.problem_type == REGRESSION else oracle(rows, metric))


def comparison(trace: Trace, seed: int = 0) -> tuple[dict[str, Policy], Trace]:
    """Return every policy that has a meaning for a trace, with its default parameters, and the rows to compare on.

    Among them is margin with a threshold for each exit. It, consistency and gain are fitted on a random half of the
    rows; all are compared on the other half. Gain needs labels.

    Raises:
        InvalidInput: fewer than two rows; rows whose logits are not finite.
    """
    fit_half, compare_half = halves(trace, seed)
    policies: dict[str, Policy] = {}
    for name in POLICIES:
        if name == "gain" and trace.labels is None:
            continue
        try:
            policy = fit_policy(name, fit_half) if name in FITTED else load_policy(name)
            policy.step(0, compare_half.exit(0), ())
        except NotApplicable:
            continue
        policies[name] = policy
    if "margin" in policies:
        policies["margin, per exit"] = load_policy("margin", **fit_lines("margin", fit_half))
    return policies, compare_half


def against_full(trace: Trace) -> Trace:
    """Return the trace with the full model's answers as labels: accuracy is then agreement."""
    last = trace.exit(trace.depth - 1)
    answers = last.logits if trace.problem_type == REGRESSION else predictions(last)
    return replace(trace, labels=answers.squeeze(-1) if trace.problem_type == SINGLE_LABEL else answers)
