"""Early exit for transformer encoders: easy inputs leave after a few layers, hard ones use all of them.

The names below are the public surface. Each is loaded when it is first used, so that `import offramp` costs nothing;
transformers' Auto classes learn about offramp's models as soon as transformers itself is loaded.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from offramp.model.auto import register_with_transformers

if TYPE_CHECKING:
    from offramp.bench.cost_table import measure_costs as measure_costs
    from offramp.calibration.calibrate import calibrate as calibrate
    from offramp.calibration.certify import certify as certify
    from offramp.calibration.ladder import ladder as ladder
    from offramp.data.examples import Examples as Examples
    from offramp.data.examples import read_examples as read_examples
    from offramp.errors import CannotReach as CannotReach
    from offramp.errors import InvalidInput as InvalidInput
    from offramp.errors import OfframpError as OfframpError
    from offramp.evaluation.compare import compare as compare
    from offramp.inference.predictor import Predictor as Predictor
    from offramp.inference.record import record as record
    from offramp.model.bypass import Bypass as Bypass
    from offramp.model.config import MultiExitConfig as MultiExitConfig
    from offramp.model.lexical.config import LexicalExit as LexicalExit
    from offramp.model.modeling import MultiExitModel as MultiExitModel
    from offramp.model.token_exit.config import TokenExit as TokenExit
    from offramp.policies.base import Policy as Policy
    from offramp.policies.base import Step as Step
    from offramp.policies.fitting import fit_lines as fit_lines
    from offramp.policies.fitting import fit_policy as fit_policy
    from offramp.policies.fitting import fit_temperatures as fit_temperatures
    from offramp.policies.registry import load_policy as load_policy
    from offramp.policies.replay import replay as replay
    from offramp.policies.replay import scores as scores
    from offramp.training.objectives.registry import load_objective as load_objective
    from offramp.training.trainer import ExitTrainer as ExitTrainer
    from offramp.types.cost_table import CostTable as CostTable
    from offramp.types.operating_point import Certificate as Certificate
    from offramp.types.operating_point import OperatingPoint as OperatingPoint
    from offramp.types.operating_point import Target as Target
    from offramp.types.outputs import Answers as Answers
    from offramp.types.outputs import ExitOutput as ExitOutput
    from offramp.types.trace import Trace as Trace

__version__ = "0.2.0"

_HOMES = {
    "bench.cost_table": ("measure_costs",),
    "calibration.calibrate": ("calibrate",),
    "calibration.certify": ("certify",),
    "calibration.ladder": ("ladder",),
    "data.examples": ("Examples", "read_examples"),
    "errors": ("CannotReach", "InvalidInput", "OfframpError"),
    "evaluation.compare": ("compare",),
    "inference.predictor": ("Predictor",),
    "inference.record": ("record",),
    "model.bypass": ("Bypass",),
    "model.config": ("MultiExitConfig",),
    "model.lexical.config": ("LexicalExit",),
    "model.modeling": ("MultiExitModel",),
    "model.token_exit.config": ("TokenExit",),
    "policies.base": ("Policy", "Step"),
    "policies.fitting": ("fit_lines", "fit_policy", "fit_temperatures"),
    "policies.registry": ("load_policy",),
    "policies.replay": ("replay", "scores"),
    "training.objectives.registry": ("load_objective",),
    "training.trainer": ("ExitTrainer",),
    "types.cost_table": ("CostTable",),
    "types.operating_point": ("Certificate", "OperatingPoint", "Target"),
    "types.outputs": ("Answers", "ExitOutput"),
    "types.trace": ("Trace",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'offramp' has no attribute {name!r}")
    return getattr(import_module(f"offramp.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__


register_with_transformers()
