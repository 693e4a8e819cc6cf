"""Whether an engine may run an operating point: what a graph holds, and what the point was measured with."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from offramp.errors import InvalidInput
from offramp.inference.onnx.metadata import GraphMetadata, read_policy_key
from offramp.policies.registry import WRAPPERS, policy_text, same_policy
from offramp.types.exit_names import layers_text
from offramp.types.operating_point import OperatingPoint

if TYPE_CHECKING:
    from offramp.inference.engine import Engine
    from offramp.model.config import MultiExitConfig
    from offramp.model.graph_config import GraphConfig

log = logging.getLogger("offramp")


@dataclass(frozen=True)
class GraphPoints:
    """The operating points that an exported file can run.

    Attributes:
        metadata: of the file.
        config: of the model that it was made of.
        option: of `offramp export` for such a file, such as " --int8".
    """

    metadata: GraphMetadata
    config: MultiExitConfig | GraphConfig
    option: str

    def check(self, point: OperatingPoint | None) -> None:
        """Refuse a point that the file cannot run.

        Raises:
            InvalidInput: it is for another policy or for other exits.
        """
        if point is None:
            return
        if not same_policy(point.policy, self.metadata.policy):
            self._refuse(point)
        self.limits(point)

    def limits(self, point: OperatingPoint) -> list[float]:
        """Return a point's threshold for each exit of the graph but the last; for those that it does not read, inf.

        Raises:
            InvalidInput: it reads other exits than the graph's policy does.
        """
        read = point.layers_read(self.config.layers)
        if read != self.metadata.layers_read:
            self._refuse(point)
        by_layer = dict(zip(read, point.thresholds, strict=False))  # none for the last one
        return [by_layer.get(layer, math.inf) for layer in self.metadata.layers[:-1]]

    def _refuse(self, point: OperatingPoint) -> NoReturn:
        """Refuse a point for another policy than the graph's, or for other exits, and say what makes it run."""
        metadata, read = self.metadata, point.layers_read(self.config.layers)
        runs, wanted = policy_text(metadata.policy), policy_text(point.policy)
        if read != metadata.layers_read:
            runs = f"{runs} at layers {layers_text(metadata.layers_read)}"
            wanted = f"{wanted} at layers {layers_text(read)}"
        raise InvalidInput(
            f"the graph runs the policy {runs}, the operating point is for {wanted}; {self._remedy(point.policy, read)}"
        )

    def _remedy(self, policy: Mapping[str, Any], read: tuple[int, ...]) -> str:
        """Return a sentence that says how to make a graph run a policy at some exits."""
        metadata = self.metadata
        command = f"offramp export FOLDER{self.option}"
        layers = metadata.subset(read)
        if left_out := [layer for layer in read if layer not in metadata.layers]:
            left = layers_text(left_out)
            return f"the file left out the exits at layers {left}: save the point, and `{command}` writes them"
        entries = map(read_policy_key, metadata.policies)
        if all(kept != layers or not same_policy(data, policy) for data, kept in entries):
            return f"the file does not hold its steps: save the point, and `{command}` writes them"
        if layers is not None or any(wrapper in policy for wrapper in WRAPPERS):  # which `--policy` cannot name
            return f'save the point as "default", and `{command}` makes a graph that runs it'
        return f"`{command} --policy {policy['name']}` lets the graph run it"


def measured_with(point: OperatingPoint | None) -> str | None:
    """Return the engine, with its precision, that a point was certified or measured with; None = not known."""
    if point is None:
        return None
    if point.certificate is not None and point.certificate.engine is not None:
        return point.certificate.engine
    return None if point.measured is None else point.measured.provenance.get("engine")


def check_engine_of(point: OperatingPoint | None, engine: Engine, allow_other_engine: bool = False) -> None:
    """Refuse a point with a certificate on another engine than its own; of other points log it.

    In float32 all engines give the same answers to rounding, so there a line of information is enough.

    Args:
        point: to be run.
        engine: that runs it.
        allow_other_engine: run it in spite of its certificate.

    Raises:
        InvalidInput: the certificate was made with another engine, or in another precision.
    """
    own = measured_with(point)
    if point is None or own in (None, engine.name):
        return
    if point.certificate is not None and not allow_other_engine:
        raise InvalidInput(
            f"this operating point's certificate holds for {own}, not for {engine.name}; run it there, or without the"
            " certificate by allow_other_engine=True (--allow-other-engine)"
        )
    exact = all(str(name).endswith("-float32") for name in (own, engine.name))
    level = logging.INFO if exact and point.certificate is None else logging.WARNING
    measured = "certified" if point.certificate is not None else "measured"
    log.log(level, "this operating point was %s with %s and runs with %s", measured, own, engine.name)
