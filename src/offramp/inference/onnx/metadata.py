"""The metadata of exported files, for the session and for the parts of a graph."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from offramp.errors import InvalidInput
from offramp.policies.registry import acting
from offramp.types.graph_file import ABOUT, GraphSource
from offramp.types.model_content import ModelContent


@dataclass(frozen=True)
class PolicyCall:
    """The call of a policy at one exit.

    Attributes:
        function: the name of the file's function; None at a last exit whose logits are the answer, and at an exit that
            the policy does not read.
        answers: True if the function returns the answer's logits; else they are the exit's own.
        memory: element types of the policy's memory after the exit.
    """

    function: str | None
    answers: bool = False
    memory: tuple[int, ...] = ()


@dataclass(frozen=True)
class GraphMetadata:
    """A file's metadata, for the session and for `assemble`.

    Attributes:
        model: SHA-256 of the files with the weights that the graph was exported from.
        precision: "float32" or "int8".
        policy: the policy that the graph runs, as data.
        layers: the layer number of each exit that the graph holds, 0 = before the first layer.
        outputs: C of the logits.
        certainty: True if the model has a gate.
        problem_type: as in transformers.
        carried: for each exit but the last, the fields that go to the next block, with their element types; from exit 0
            (before the first layer) to the embedding go the model's inputs.
        written: for each exit, the fields that its block writes; the others do not change.
        policies: the key of a policy (see `policy_key`) -> its calls, one an exit.
        exit_layers: the layers whose exits the policy reads; None = all of the graph's.
        source: what the graph was made of; None in a file of an earlier version.
        activations: of int8, the data and the rows that the scales of activations come from; None in a file of an
            earlier version, whose scales depend on the batch.
    """

    model: str
    precision: str
    policy: Mapping[str, Any]
    layers: tuple[int, ...]
    outputs: int
    certainty: bool
    problem_type: str
    carried: tuple[Mapping[str, int], ...]
    written: tuple[tuple[str, ...], ...]
    policies: Mapping[str, tuple[PolicyCall, ...]] = field(default_factory=dict)
    exit_layers: tuple[int, ...] | None = None
    source: GraphSource | None = None
    activations: Mapping[str, Any] | None = None

    @property
    def layers_read(self) -> tuple[int, ...]:
        """Return the layers whose exits the policy reads."""
        return self.layers if self.exit_layers is None else self.exit_layers

    def subset(self, layers: Sequence[int]) -> tuple[int, ...] | None:
        """Return layer numbers of the graph's exits; None where they are all of them."""
        return None if tuple(layers) == self.layers else tuple(layers)

    @property
    def first_block(self) -> int:
        """Return the number of the first exit behind a block: 1 where exit 0 comes before the first layer."""
        return int(self.layers[0] == 0)

    @classmethod
    def of(cls, metadata: Mapping[str, str]) -> GraphMetadata:
        """Read a file's metadata.

        Raises:
            InvalidInput: `offramp export` did not write it.
        """
        if ABOUT not in metadata:
            raise InvalidInput("not a graph that `offramp export` wrote")
        fields = json.loads(metadata[ABOUT])
        for name in ("layers", "carried", "exit_layers"):
            if name in fields:
                fields[name] = tuple(fields[name])
        fields["written"] = tuple(tuple(names) for names in fields["written"])
        fields["policies"] = {
            policy: tuple(PolicyCall(call["function"], call["answers"], tuple(call["memory"])) for call in calls)
            for policy, calls in fields["policies"].items()
        }
        return cls(**fields, source=GraphSource.from_metadata(metadata))

    def to_metadata(self) -> dict[str, str]:
        """Return the entries of a file's metadata."""
        fields = {name: value for name, value in asdict(self).items() if name != "source"}
        for name in ("exit_layers", "activations"):
            if fields[name] is None:
                del fields[name]
        return {ABOUT: json.dumps(fields), **({} if self.source is None else self.source.to_metadata())}


def policy_key(policy: Mapping[str, Any], exit_layers: Sequence[int] | None = None) -> str:
    """Return a policy's key among a file's policies; the rows that it was fitted on do not belong to it.

    Args:
        policy: as data.
        exit_layers: the layers whose exits it reads; None = all of the graph's.
    """
    read = {} if exit_layers is None else {"exit_layers": list(exit_layers)}
    return json.dumps({**acting(policy), **read}, sort_keys=True)


def read_policy_key(key: str) -> tuple[dict[str, Any], tuple[int, ...] | None]:
    """Return the policy of a key as data, and the layers whose exits it reads; None = all of the graph's."""
    policy: dict[str, Any] = json.loads(key)
    layers = policy.pop("exit_layers", None)
    return policy, None if layers is None else tuple(layers)


def weights_digest(folder: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of the files with the weights in a local folder."""
    return ModelContent(Path(folder)).file_digest or hashlib.sha256().hexdigest()
