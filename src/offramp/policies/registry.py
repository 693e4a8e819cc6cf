"""The tables of policies and wrappers: names that users type, and policies as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any, cast

from offramp.errors import InvalidInput, UnknownName
from offramp.registry import build, load
from offramp.types.exit_names import layers_text

if TYPE_CHECKING:
    from offramp.policies.base import Policy, WrapperPolicy

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

WRAPPERS = {  # a parameter that policies take -> the wrapper that goes around them; inner ones first
    "temperatures": "offramp.policies.temperature:TemperatureScaled",
    "lines": "offramp.policies.exit_scaling:ExitScaled",
    "offsets": "offramp.policies.class_offsets:ClassOffsets",
    "ensemble": "offramp.policies.ensemble:Ensemble",
}


def load_policy(name: str | Mapping[str, Any], **parameters: Any) -> Policy:
    """Build an exit policy from its name, or from the data that an operating point holds.

    Args:
        name: a name of the table ("entropy"), or its data form `{"name": "pcee", "measure": "entropy", "patience": 2}`.
        parameters: the policy's own, e.g. `patience=2`; a policy inside a policy is a name or data again. Wrappers add
            parameters: every policy takes `ensemble="run"` or `"all"` (see `offramp.policies.ensemble`) and, for
            classes, `offsets=(...)` (see `offramp.policies.class_offsets`); every one that is not fitted takes
            `temperatures=(...)` (see `offramp.policies.temperature`), and one whose score is in 0..1 `lines=(...)` (see
            `offramp.policies.exit_scaling`).

    Raises:
        UnknownName: no such policy.
        InvalidInput: a parameter that this policy does not have, or a value outside its range.

    Example:
        >>> offramp.load_policy("pcee", measure="margin", patience=3)
        PatientConfidence(measure=Margin(), patience=3)
        >>> offramp.load_policy({"name": "patience", "ensemble": "run"})
        Ensemble(policy=Patience(), members='run')
    """
    if not isinstance(name, str):
        if "name" not in name:
            raise InvalidInput(f"a policy as data needs a name, got {dict(name)}")
        return load_policy(**{**name, **parameters})
    if "measure" in parameters and isinstance(parameters["measure"], (str, Mapping)):
        parameters["measure"] = load_policy(parameters["measure"])
    wrappers: list[tuple[type[WrapperPolicy], dict[str, Any]]] = []
    for row in (row for row in WRAPPERS if row in parameters):
        wrapper = load(WRAPPERS, row)
        options = {
            field: parameters.pop(key) for key, field in _wrapper_keys(row, wrapper).items() if key in parameters
        }
        wrappers.append((wrapper, options))
    policy: Policy = build(POLICIES, name, parameters)
    for wrapper, options in wrappers:
        policy = wrapper(policy=policy, **options)  # type: ignore[call-arg]  # a dataclass
    return policy


def as_policy(policy: Policy | Mapping[str, Any] | str) -> Policy:
    """Return a policy as it is, and one that is given by name or as data as `load_policy` builds it."""
    return load_policy(policy) if isinstance(policy, (str, Mapping)) else policy


def _wrapper_keys(row: str, wrapper: type[Any]) -> dict[str, str]:
    """Return a wrapper's keys in a policy's data -> its fields; the inner policy has none."""
    names = (field.name for field in fields(wrapper) if field.name != "policy")
    return {row if name == wrapper.parameter else name: name for name in names}


def default_unfitted_policy(problem_type: str) -> str:
    """Return the name of the policy for a kind of problem where none is named and no numbers can be fitted.

    Where there is a trace to fit on, the default is `offramp.policies.fitting.fit_default_policy`.
    """
    return "stability" if problem_type == "regression" else "margin"


def policy_to_dict(policy: Policy) -> dict[str, Any]:
    """Return a policy as data: its name and its parameters, ready for JSON; `load_policy` reads it back.

    Raises:
        UnknownName: the policy's class is in no table.
        InvalidInput: it is not a dataclass.
    """
    path = f"{type(policy).__module__}:{type(policy).__qualname__}"
    name = next((name for name, row in {**POLICIES, **WRAPPERS}.items() if row == path), None)
    if name is None:
        raise UnknownName(
            f"{type(policy).__name__} has no row in offramp.policies.registry.POLICIES, so it cannot be stored by name;"
            f' such a row is POLICIES["a-name"] = "{path}"'
        )
    if not is_dataclass(policy):
        raise InvalidInput(f"{type(policy).__name__} is not a dataclass, so its parameters cannot be stored")
    if name in WRAPPERS:
        inner = cast("WrapperPolicy", policy).policy
        keys = _wrapper_keys(name, type(policy))
        return {**policy_to_dict(inner), **{key: getattr(policy, field) for key, field in keys.items()}}
    data: dict[str, Any] = {"name": name}
    for field in fields(policy):
        value = getattr(policy, field.name)
        value = policy_to_dict(value) if is_dataclass(value) and not isinstance(value, type) else value
        data[field.name] = value["name"] if isinstance(value, dict) and len(value) == 1 else value
    return data


def acting(policy: Mapping[str, Any]) -> dict[str, Any]:
    """Return a policy as data, without the rows that it was fitted on."""
    return {
        name: acting(value) if isinstance(value, Mapping) else value
        for name, value in policy.items()
        if name != "fitted_on"
    }


def same_policy(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Return whether two policies as data are the same; torch is imported only where their data differ.

    Raises:
        UnknownName: one of them is not known.
        InvalidInput: a parameter of one of them is not right.
    """
    return acting(one) == acting(other) or load_policy(one) == load_policy(other)


def summarize(policy: Mapping[str, Any]) -> dict[str, Any]:
    """Return a policy's data for people to read: without fitted weights and the hashes of their rows."""
    return {
        name: summarize(value) if isinstance(value, Mapping) else value
        for name, value in policy.items()
        if name not in ("weights", "fitted_on")
    }


def policy_text(policy: Mapping[str, Any]) -> str:
    """Return a policy's data in words: "pcee (measure entropy, patience 2)"; a graph's may name the exits it reads."""
    own = {key: value for key, value in summarize(policy).items() if key not in ("name", "exit_layers")}
    words = [f"{key} {value}" for key, value in own.items()]
    if "exit_layers" in policy:
        words.append(f"exits at layers {layers_text(policy['exit_layers'])}")
    return f"{policy['name']} ({', '.join(words)})" if words else str(policy["name"])
