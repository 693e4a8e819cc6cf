"""The table of policies: names that users type, and policies as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

from offramp.errors import InvalidInput, UnknownName
from offramp.registry import build, load

if TYPE_CHECKING:
    from offramp.policies.base import Policy

POLICIES = {
    "certainty": "offramp.policies.certainty:Certainty",
    "consistency": "offramp.policies.consistency:Consistency",
    "divergence": "offramp.policies.divergence:Divergence",
    "entropy": "offramp.policies.confidence:Entropy",
    "fixed": "offramp.policies.fixed:Fixed",
    "gain": "offramp.policies.consistency:Gain",
    "margin": "offramp.policies.confidence:Margin",
    "max-prob": "offramp.policies.confidence:MaxProb",
    "patience": "offramp.policies.patience:Patience",
    "pcee": "offramp.policies.pcee:PatientConfidence",
    "stability": "offramp.policies.patience:Stability",
}

FITTED = ("consistency", "gain")  # names that need numbers from a trace first: offramp.policies.fitting

WRAPPERS = {  # a parameter that any policy takes -> what goes around it: (policy, parameter, more); inner ones first
    "temperatures": "offramp.policies.temperature:TemperatureScaled",
    "lines": "offramp.policies.exit_scaling:ExitScaled",
    "offsets": "offramp.policies.class_offsets:ClassOffsets",
    "ensemble": "offramp.policies.ensemble:Ensemble",
}


def load_policy(name: str | Mapping[str, Any], **parameters: Any) -> Policy:
    """An exit policy by name, or from the data that an operating point holds.

    Args:
        name: a name of the table ("entropy"), or its data form `{"name": "pcee", "measure": "entropy", "patience": 2}`.
        parameters: the policy's own, e.g. `patience=2`; a policy inside a policy is a name or data again. Every policy
            takes `ensemble="run"` or `"all"` (see `offramp.policies.ensemble`) and, of classes, `offsets=(...)` (see
            `offramp.policies.class_offsets`), every one that is not fitted
            `temperatures=(...)` (see `offramp.policies.temperature`), and one whose score is in 0..1 `lines=(...)` (see
            `offramp.policies.exit_scaling`).

    Raises:
        UnknownName: no such policy.
        InvalidInput: a parameter that this policy does not have, or a value outside its range.
    """
    if not isinstance(name, str):
        if "name" not in name:
            raise InvalidInput(f"a policy as data needs a name, got {dict(name)}")
        return load_policy(**{**name, **parameters})
    if "measure" in parameters and isinstance(parameters["measure"], (str, Mapping)):
        parameters["measure"] = load_policy(parameters["measure"])
    around = []
    for wrapper in (wrapper for wrapper in WRAPPERS if wrapper in parameters):
        found, value = load(WRAPPERS, wrapper), parameters.pop(wrapper)
        more = {field.name: parameters.pop(field.name) for field in fields(found)[2:] if field.name in parameters}
        around.append((found, value, more))
    policy: Policy = build(POLICIES, name, parameters)
    for found, value, more in around:
        policy = found(policy, value, **more)
    return policy


def default_policy(problem_type: str) -> str:
    """The name of the policy for a kind of problem where none is asked for."""
    return "stability" if problem_type == "regression" else "margin"


def policy_to_dict(policy: Policy) -> dict[str, Any]:
    """A policy as data: its name and its parameters, ready for JSON; `load_policy` reads it back."""
    path = f"{type(policy).__module__}:{type(policy).__qualname__}"
    name = next((name for name, row in {**POLICIES, **WRAPPERS}.items() if row == path), None)
    if name is None or not is_dataclass(policy):
        raise UnknownName(f"{type(policy).__name__} has no row in offramp/registry.py, so it cannot be stored by name")
    if name in WRAPPERS:
        wrapped, *own = (getattr(policy, field.name) for field in fields(policy))
        names = [name, *(field.name for field in fields(policy)[2:])]
        return {**policy_to_dict(wrapped), **dict(zip(names, own, strict=True))}
    data: dict[str, Any] = {"name": name}
    for field in fields(policy):
        value = getattr(policy, field.name)
        inner = policy_to_dict(value) if is_dataclass(value) and not isinstance(value, type) else value
        data[field.name] = inner["name"] if isinstance(inner, dict) and len(inner) == 1 else inner
    return data


def summarize(policy: Mapping[str, Any]) -> dict[str, Any]:
    """A policy's data as it is shown to people: without fitted weights, and without the rows that they are from."""
    return {
        name: summarize(value) if isinstance(value, Mapping) else value
        for name, value in policy.items()
        if name not in ("weights", "fitted_on")
    }


def policy_text(policy: Mapping[str, Any]) -> str:
    """Return a policy's data in words: "pcee (measure entropy, patience 2)"."""
    parameters = ", ".join(f"{key} {value}" for key, value in summarize(policy).items() if key != "name")
    return f"{policy['name']} ({parameters})" if parameters else str(policy["name"])
