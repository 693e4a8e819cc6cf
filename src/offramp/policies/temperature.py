"""Temperature scaling: another policy, on logits that are divided by their exit's temperature.

Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, section 4.2.

Differs from the paper, which has one temperature for a network: here each exit has its own.

A temperature makes probabilities match how often the answers are right, and changes no answer. The exits of one model
are over-confident to different degrees; after scaling, one threshold means the same at all of them.
"""

import math
from dataclasses import dataclass, field, replace
from typing import ClassVar, final

from offramp.errors import InvalidInput, NotApplicable
from offramp.policies.base import Memory, Policy, Step, WrapperPolicy
from offramp.types.outputs import ExitOutput
from offramp.types.problem_types import REGRESSION


@final
@dataclass(frozen=True)
class TemperatureScaled(WrapperPolicy):
    """Score: the inner policy's, of the scaled logits. Answer: the scaled logits.

    Attributes:
        policy: the inner policy. Fitted ones have a scale of their own; an ensemble goes around this, not into it.
        temperatures: one for each exit, > 0; above 1 lowers confidence (`offramp.policies.fitting.fit_temperatures`).
        fitted_on: hashes of the rows that they were fitted on (`offramp.types.trace.row_hashes`); () = set by hand.
    """

    parameter: ClassVar[str] = "temperatures"
    rescalable: ClassVar[bool] = False

    policy: Policy
    temperatures: tuple[float, ...]
    fitted_on: tuple[str, ...] = field(default=(), repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.policy, Policy) or not self.policy.rescalable:
            raise InvalidInput(
                f"temperatures go around a policy that is neither fitted nor an ensemble, got {self.policy!r}"
            )
        temperatures = tuple(float(value) for value in self.temperatures)
        if not temperatures or not all(0 < value < math.inf for value in temperatures):
            raise InvalidInput(f"temperatures must be above 0, one for each exit; got {temperatures}")
        object.__setattr__(self, "temperatures", temperatures)
        object.__setattr__(self, "fitted_on", tuple(self.fitted_on))

    def step(self, exit: int, out: ExitOutput, memory: Memory) -> Step:
        """Score one exit."""
        if out.problem_type == REGRESSION:
            raise NotApplicable("temperatures scale probabilities and a regression has none")
        if exit >= len(self.temperatures) or (out.last and exit < len(self.temperatures) - 1):
            count = f"{exit + 1} exits" if out.last else f"at least {exit + 1} exits"
            raise InvalidInput(f"temperatures for {len(self.temperatures)} exits, but the model has {count}")
        return self.policy.step(exit, replace(out, logits=out.logits.float() / self.temperatures[exit]), memory)
