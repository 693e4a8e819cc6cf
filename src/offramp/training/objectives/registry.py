"""The table of training objectives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from offramp.registry import build

if TYPE_CHECKING:
    from offramp.training.objectives.base import Objective

OBJECTIVES = {
    "alternating": "offramp.training.objectives.staged:Alternating",
    "ensemble-distillation": "offramp.training.objectives.distillation:EnsembleDistillation",
    "gradient-equilibrium": "offramp.training.objectives.equilibrium:GradientEquilibrium",
    "joint": "offramp.training.objectives.joint:Joint",
    "last": "offramp.training.objectives.joint:Last",
    "self-distillation": "offramp.training.objectives.distillation:SelfDistillation",
    "two-stage": "offramp.training.objectives.staged:TwoStage",
    "weighted": "offramp.training.objectives.joint:Weighted",
}


def load_objective(name: str, **parameters: Any) -> Objective:
    """Return a training objective by name, e.g. "weighted".

    Raises:
        UnknownName: no such objective.
        InvalidInput: a parameter that this objective does not have, or a value outside its range.

    Example:
        >>> objective = offramp.load_objective("self-distillation", temperature=2.0)
        >>> objective
        SelfDistillation(temperature=2.0, freeze=False)
        >>> [stage.name for stage in objective.stages]
        ['last', 'early']
    """
    objective: Objective = build(OBJECTIVES, name, parameters)
    return objective
