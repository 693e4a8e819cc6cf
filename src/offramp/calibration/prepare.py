"""Build the policy that a user asked for, with the numbers that a trace gives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from offramp.policies.registry import FITTED

if TYPE_CHECKING:
    from offramp.policies.base import Policy
    from offramp.types.trace import Trace


def prepare_policy(
    trace: Trace, policy: str | None, parameters: dict[str, Any], temperature: bool, per_exit: bool, apart: bool
) -> tuple[Policy, Trace]:
    """The policy that was asked for, with its numbers, and the rows to choose its threshold on.

    Numbers are fitted on a random half of the rows, the lines of --per-exit on all, unless `apart`.
    """
    from offramp.policies.fitting import fit_lines, fit_policy, fit_temperatures
    from offramp.policies.registry import default_policy, load_policy, policy_to_dict

    name = policy or default_policy(str(trace.problem_type))
    if name in FITTED:
        ours, trace = _halves(trace, name)
        parameters = {**policy_to_dict(fit_policy(name, ours)), **parameters}
        return load_policy(parameters), trace
    if temperature:
        ours, trace = _halves(trace, "temperatures")
        parameters |= fit_temperatures(ours)
    if per_exit:
        ours, trace = _halves(trace, "thresholds for each exit") if apart else (trace, trace)
        parameters |= fit_lines(name, ours)
    return load_policy(name, **parameters), trace


def _halves(trace: Trace, what: str) -> tuple[Trace, Trace]:
    """Two random halves of the rows: to fit, and to choose the threshold."""
    from offramp.policies.fitting import halves

    ours, rest = halves(trace)
    click.echo(f"{what} fitted on {len(ours)} rows, the threshold chosen on the other {len(rest)}", err=True)
    return ours, rest
