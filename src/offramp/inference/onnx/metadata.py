"""The metadata of exported files, for the session and for the parts of a graph."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from offramp.errors import InvalidInput
from offramp.types.graph_file import ABOUT, GraphSource
from offramp.types.model_content import ModelContent


@dataclass(frozen=True)
class PolicyCall:
    """The call of a policy at one exit.

    Attributes:
        function: the name of the file's function; None at a last exit whose logits are the answer.
        answers: True if the function returns the answer's logits; else they are the exit's own.
        memory: element types of the policy's memory.
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
        layers: the layer number of each exit.
        outputs: C of the logits.
        certainty: True if the model has a gate.
        problem_type: as in transformers.
        carried: for each exit but the last, the fields that go to the next block, with their element types.
        written: for each exit, the fields that its block writes; the others do not change.
        policies: JSON of a policy -> its calls, one an exit.
        source: what the graph was made of; None in a file of an earlier version.
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
    source: GraphSource | None = None

    @classmethod
    def of(cls, metadata: Mapping[str, str]) -> GraphMetadata:
        """Read a file's metadata.

        Raises:
            InvalidInput: `offramp export` did not write it.
        """
        if ABOUT not in metadata:
            raise InvalidInput("not a graph that `offramp export` wrote")
        fields = json.loads(metadata[ABOUT])
        for name in ("layers", "carried"):
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
        return {ABOUT: json.dumps(fields), **({} if self.source is None else self.source.to_metadata())}


def weights_digest(folder: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of the files with the weights in a local folder."""
    return ModelContent(Path(folder)).file_digest or hashlib.sha256().hexdigest()
