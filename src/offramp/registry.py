"""Names a user types -> "module:Class". Nothing is imported before it is asked for.

To add a policy, an objective or a backbone: write the class, add a row here.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from offramp.errors import InvalidInput, UnknownName, UnsupportedBackbone

if TYPE_CHECKING:
    from offramp.objectives.base import Objective
    from offramp.policies.base import Policy
    from offramp.studies.base import Study

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

OBJECTIVES = {
    "alternating": "offramp.objectives.staged:Alternating",
    "ensemble-distillation": "offramp.objectives.distillation:EnsembleDistillation",
    "gradient-equilibrium": "offramp.objectives.equilibrium:GradientEquilibrium",
    "joint": "offramp.objectives.joint:Joint",
    "last": "offramp.objectives.joint:Last",
    "self-distillation": "offramp.objectives.distillation:SelfDistillation",
    "two-stage": "offramp.objectives.staged:TwoStage",
    "weighted": "offramp.objectives.joint:Weighted",
}

STUDIES = {
    "badge": "offramp.studies.badge:STUDY",
    "berxit": "offramp.studies.berxit:STUDY",
    "mpee": "offramp.studies.mpee:STUDY",
    "pabee": "offramp.studies.pabee:STUDY",
    "pcee": "offramp.studies.pcee:STUDY",
}

BACKBONES = {  # transformers' model_type -> the class that cuts it at its layers
    "albert": "offramp.backbones.bert:Bert",
    "bert": "offramp.backbones.bert:Bert",
    "camembert": "offramp.backbones.bert:Bert",
    "cifar_resnet": "offramp.backbones.resnet:CifarResNetCut",
    "deberta": "offramp.backbones.deberta:Deberta",
    "deberta-v2": "offramp.backbones.deberta:Deberta",
    "distilbert": "offramp.backbones.bert:Bert",
    "electra": "offramp.backbones.bert:Bert",
    "modernbert": "offramp.backbones.modernbert:ModernBert",
    "mpnet": "offramp.backbones.mpnet:MPNet",
    "roberta": "offramp.backbones.bert:Bert",
    "vit": "offramp.backbones.vit:ViT",
    "xlm-roberta": "offramp.backbones.bert:Bert",
}


def load(table: Mapping[str, str], name: str) -> type[Any]:
    """The class that a table holds under `name`.

    Raises:
        UnknownName: the table has no such row; the message names the nearest ones.
    """
    if name not in table:
        near = difflib.get_close_matches(name.replace("_", "-"), table, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UnknownName(f"unknown name {name!r}; {hint}known: {', '.join(sorted(table))}")
    module, _, attribute = table[name].partition(":")
    found: type[Any] = getattr(import_module(module), attribute)
    return found


def load_backbone(model_type: str) -> type[Any]:
    """The `Backbone` class for a transformers `model_type`.

    Raises:
        UnsupportedBackbone: offramp does not know this family.
    """
    if model_type not in BACKBONES:
        raise UnsupportedBackbone(
            f"model type {model_type!r} is not supported; supported: {', '.join(sorted(BACKBONES))}. An encoder whose "
            "blocks need only hidden states and a mask is one row in offramp/backbones/bert.py and one in registry.py"
        )
    return load(BACKBONES, model_type)


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
    policy: Policy = _build(POLICIES, name, parameters)
    for found, value, more in around:
        policy = found(policy, value, **more)
    return policy


def usual_policy(problem_type: str) -> str:
    """The name of the policy for a kind of problem where none is asked for."""
    return "stability" if problem_type == "regression" else "margin"


def load_objective(name: str, **parameters: Any) -> Objective:
    """A training objective by name, e.g. "weighted".

    Raises:
        UnknownName: no such objective.
        InvalidInput: a parameter that this objective does not have, or a value outside its range.
    """
    objective: Objective = _build(OBJECTIVES, name, parameters)
    return objective


def load_study(name: str) -> Study:
    """A paper's comparison by name, e.g. "pcee".

    Raises:
        UnknownName: no such study.
    """
    found: Any = load(STUDIES, name)
    study: Study = found
    return study


def policy_data(policy: Policy) -> dict[str, Any]:
    """A policy as data: its name and its parameters, ready for JSON; `load_policy` reads it back."""
    path = f"{type(policy).__module__}:{type(policy).__qualname__}"
    name = next((name for name, row in {**POLICIES, **WRAPPERS}.items() if row == path), None)
    if name is None or not is_dataclass(policy):
        raise UnknownName(f"{type(policy).__name__} has no row in offramp/registry.py, so it cannot be stored by name")
    if name in WRAPPERS:
        wrapped, *own = (getattr(policy, field.name) for field in fields(policy))
        names = [name, *(field.name for field in fields(policy)[2:])]
        return {**policy_data(wrapped), **dict(zip(names, own, strict=True))}
    data: dict[str, Any] = {"name": name}
    for field in fields(policy):
        value = getattr(policy, field.name)
        inner = policy_data(value) if is_dataclass(value) and not isinstance(value, type) else value
        data[field.name] = inner["name"] if isinstance(inner, dict) and len(inner) == 1 else inner
    return data


def brief(policy: Mapping[str, Any]) -> dict[str, Any]:
    """A policy's data as it is shown to people: without fitted weights, and without the rows that they are from."""
    return {
        name: brief(value) if isinstance(value, Mapping) else value
        for name, value in policy.items()
        if name not in ("weights", "fitted_on")
    }


def _build(table: Mapping[str, str], name: str, parameters: Mapping[str, Any]) -> Any:
    """Build what a table holds under `name`.

    Raises:
        UnknownName: the table has no such row.
        InvalidInput: a parameter that the class does not have, or a value outside its range.
    """
    found = load(table, name)
    known = [field.name for field in fields(found) if field.init]
    if unknown := sorted(set(parameters) - set(known)):
        raise InvalidInput(f"{name!r} has no parameter {unknown[0]!r}; it has: {', '.join(known) or 'none'}")
    return found(**parameters)
