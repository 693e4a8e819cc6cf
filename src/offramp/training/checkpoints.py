"""Checkpoints of a training run: which is the newest whole one, and whether it is of the same run.

A run that is stopped while it writes a checkpoint leaves a part of one. transformers would resume from it, because it
looks at the number in the folder's name alone.
"""

from __future__ import annotations

import dataclasses
import json
import re
import reprlib
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import TrainingArguments
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_pt_utils import safe_globals
from transformers.trainer_utils import has_length
from transformers.utils import (
    ADAPTER_CONFIG_NAME,
    ADAPTER_SAFE_WEIGHTS_NAME,
    CONFIG_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
)

from offramp.errors import InvalidInput
from offramp.model.config import MultiExitConfig
from offramp.model.modeling import MultiExitModel
from offramp.training.objectives.base import Objective
from offramp.types.fingerprint import LEXICAL

RUN_FILE = "run.json"
"""A checkpoint's file with the facts of its run."""
EXITS = ("exit_layers", "problem_type", "head", "pooling", "bypass", "certainty", "memory", "token_exit")
ENCODER = ("model_type", "num_hidden_layers", "hidden_size")
NOT_OF_THE_RUN = ("objective_modules.", LEXICAL)
"""Weights that are a part of the model while it trains, or are fitted afterwards, and that it may do without."""


@dataclass(frozen=True)
class RunFiles:
    """The checkpoints of a training run.

    Attributes:
        folder: of the run.
        stages: names of its stages, each with a folder of its own; () for one stage, whose checkpoints lie in `folder`.
        facts: by which a checkpoint is known as one of this run, beside the model's; "processes" is not compared.
        weights_only: the checkpoints have no optimiser (`save_only_model`).
    """

    folder: Path
    stages: Sequence[str]
    facts: Mapping[str, Any]
    weights_only: bool = False

    def newest(self) -> tuple[Path | None, list[str]]:
        """Return the newest whole checkpoint, and for each newer one what is wrong with it.

        Raises:
            InvalidInput: there are checkpoints, but where another objective writes them.
        """
        folders = [self.folder / name for name in reversed(self.stages)] or [self.folder]
        candidates = [checkpoint for folder in folders for checkpoint in checkpoints_in(folder)]
        others = [] if candidates else [*checkpoints_in(self.folder), *self.folder.glob("*/checkpoint-*")]
        if others:
            objective = self.facts["objective"]
            raise InvalidInput(f"{others[0]} is of another run: its objective has other stages than {objective}")
        faults: list[str] = []
        for checkpoint in candidates:
            fault = fault_of(checkpoint, weights_only=self.weights_only)
            if fault is None:
                return checkpoint, faults
            faults.append(f"{checkpoint.name}: {fault}")
        return None, faults

    def stage_of(self, checkpoint: Path) -> int:
        """Return the number of the stage that wrote a checkpoint."""
        name = checkpoint.absolute().parent.name
        return self.stages.index(name) if name in self.stages else 0

    def write_facts(self, checkpoint: Path) -> None:
        """Write the facts into the folder that becomes a checkpoint."""
        checkpoint.mkdir(parents=True, exist_ok=True)
        (checkpoint / RUN_FILE).write_text(json.dumps(self.facts, indent=1) + "\n", encoding="utf-8")

    def check(self, checkpoint: Path, model: MultiExitModel) -> None:
        """Refuse a checkpoint that is not whole, or of another run; facts that an older one lacks are not compared.

        Raises:
            InvalidInput: what is missing or damaged, or the first difference.
        """
        fault = fault_of(checkpoint, weights_only=self.weights_only)
        if fault is not None:
            raise InvalidInput(f"{checkpoint} cannot be resumed: {fault}")
        has_config = (checkpoint / CONFIG_NAME).exists()
        before = _model_facts(MultiExitConfig.from_pretrained(checkpoint)) if has_config else {}
        before |= (_read_json(checkpoint / RUN_FILE) or {}) if (checkpoint / RUN_FILE).exists() else {}
        now = _model_facts(model.config) | json.loads(json.dumps(self.facts)) | {"processes": before.get("processes")}
        changed = [name for name in now if name in before and before[name] != now[name]]
        difference = _other_weight(checkpoint, model) if not changed else None
        if changed:
            was, is_now = (reprlib.repr(facts[changed[0]]) for facts in (before, now))
            difference = f"{changed[0].replace('_', ' ')}: {was} there, {is_now} here"
        if difference:
            raise InvalidInput(f"{checkpoint} is of another run ({difference}); resume with the same data and options")


def run_facts(
    args: TrainingArguments, objective: Objective, rows: Any, class_weights: Tensor | None, trial: Any = None
) -> dict[str, float | str | list[float] | None]:
    """Return the facts by which a checkpoint is known as one of a run.

    Args:
        args: of the run.
        objective: before its own modules are built.
        rows: the training rows.
        class_weights: (C,) or None.
        trial: of a hyperparameter search, which may change a run's learning rate; None = there is no search.
    """
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    return {
        "objective": describe(objective),
        "training rows": len(rows) if has_length(rows) else None,
        "rows a step": None if args.auto_find_batch_size else batch,
        "class weights": None if class_weights is None else class_weights.tolist(),
        "processes": args.world_size,
        **({"learning rate": args.learning_rate, "seed": args.seed} if trial is None else {}),
    }


def describe(objective: Objective) -> str:
    """Return an objective as text, with its parameters."""
    values: dict[str, Any] = {}
    if dataclasses.is_dataclass(objective):
        values = {field.name: getattr(objective, field.name) for field in dataclasses.fields(objective)}
    plain = [f"{name}={it!r}" for name, it in values.items() if it is None or isinstance(it, (int, float, str))]
    return f"{type(objective).__name__}({', '.join(plain)})"


def checkpoints_in(folder: Path) -> list[Path]:
    """Return the checkpoints of a folder, the newest first."""
    numbers = {path: re.fullmatch(r"checkpoint-(\d+)", path.name) for path in folder.glob("checkpoint-*")}
    steps = {path: int(match[1]) for path, match in numbers.items() if match and path.is_dir()}
    return sorted(steps, key=lambda path: -steps[path])


def load_other_random_state(checkpoint: Path, processes: int) -> None:
    """Go on with torch's random numbers where one process resumes what several began, or the other way round.

    transformers looks for a file of its own kind alone.

    Args:
        checkpoint: to resume.
        processes: that train now.
    """
    one, first = checkpoint / "rng_state.pth", checkpoint / "rng_state_0.pth"
    own, other = (one, first) if processes == 1 else (first, one)
    if not own.exists() and other.exists():
        with safe_globals():
            torch.set_rng_state(torch.load(other, weights_only=True)["cpu"])


def fault_of(checkpoint: Path, *, weights_only: bool = False) -> str | None:
    """Return why a run cannot be resumed from a checkpoint; None if it is whole.

    Every file is opened: weights by their header and length, torch's files by their checksums, JSON by parsing.
    """
    paths = {path.name: path for path in checkpoint.iterdir()} if checkpoint.is_dir() else {}
    if not paths:
        return "there is nothing in it" if checkpoint.is_dir() else "there is no such folder"
    missing = [name for name in _required(paths, weights_only) if name not in paths]
    if missing:
        return f"{missing[0]} is missing"
    damaged = (name for name, path in sorted(paths.items()) if not _opens(path))
    return next((f"{name} is cut short or damaged" for name in damaged), None)


def _required(paths: Mapping[str, Path], weights_only: bool) -> Iterator[str]:
    """Yield the names of the files that a checkpoint needs; one of PEFT has the adapter's weights alone."""
    adapter = paths.get(ADAPTER_CONFIG_NAME)
    index = paths.get(SAFE_WEIGHTS_INDEX_NAME)
    shards = (_read_json(index) or {}).get("weight_map", {}).values() if index else [SAFE_WEIGHTS_NAME]
    yield from [ADAPTER_SAFE_WEIGHTS_NAME] if adapter else [CONFIG_NAME, *sorted(set(shards))]
    if not weights_only:
        run = paths.get(RUN_FILE)
        processes = (_read_json(run) or {}).get("processes", 1) if run else 1
        yield from (OPTIMIZER_NAME, SCHEDULER_NAME)
        yield from ["rng_state.pth"] if processes == 1 else [f"rng_state_{rank}.pth" for rank in range(processes)]
    yield TRAINER_STATE_NAME  # written last


def _opens(path: Path) -> bool:
    if path.name == TRAINER_STATE_NAME:
        return isinstance((_read_json(path) or {}).get("global_step"), int)
    if path.suffix == ".json":
        return _read_json(path) is not None
    if path.suffix in (".pt", ".pth"):
        return _is_whole_archive(path)
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt"):
                return True
        except SafetensorError:
            return False
    return True


def _is_whole_archive(path: Path) -> bool:
    """Return whether a file of `torch.save`, which is a zip file, is there to its end and has its checksums."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except zipfile.BadZipFile:
        return False


def _read_json(path: Path) -> dict[str, Any] | None:
    """Return the object in a JSON file; None if there is no whole one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _model_facts(config: MultiExitConfig) -> dict[str, Any]:
    encoder = {f"encoder_{name}": getattr(config.backbone, name) for name in ENCODER}
    labels = {"labels": list(config.id2label.values())}
    return encoder | labels | {name: getattr(config, name) for name in EXITS}


def _other_weight(checkpoint: Path, model: MultiExitModel) -> str | None:
    """Return the first weight of a checkpoint that the model does not have, or has in another shape."""
    shapes = {name: list(value.shape) for name, value in model.state_dict().items()}
    for path in checkpoint.glob("model*.safetensors"):
        with safe_open(path, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118 - not a mapping
                shape = list(weights.get_slice(name).get_shape())
                if shapes.get(name, shape) != shape or (name not in shapes and not name.startswith(NOT_OF_THE_RUN)):
                    return f"weight {name}: {shape} there, {shapes.get(name, 'none')} here"
    return None
