"""Full-depth baselines: the same encoder with its last head alone, in every runtime that is installed.

They use the exporter and the quantizer of the early-exit graphs, attention as plain products, and ONNX Runtime with and
without the fusion that is slow on some CPUs; the faster of the two counts.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from offramp.bench.timer import Inputs, Run
from offramp.errors import one_line
from offramp.model.modeling import MultiExitModel
from offramp.types.graph_file import GRAPHS


def forward(model: MultiExitModel, inputs: Mapping[str, Tensor]) -> Tensor:
    """Run transformers' own forward of the encoder, then the last head; logits (B, C)."""
    hidden = model.backbone(**inputs).last_hidden_state
    logits: Tensor = model.heads(len(model.config.exit_layers) - 1, hidden, inputs["attention_mask"])
    return logits


@torch.inference_mode()
def plain(model: MultiExitModel, inputs: Mapping[str, Tensor]) -> Tensor:
    """Run `forward` in inference mode."""
    return forward(model, inputs)


log = logging.getLogger("offramp")


@dataclass(frozen=True)
class Baseline:
    """A full-depth model without exits in one runtime.

    Attributes:
        engine: the one that it belongs to; the fastest baseline of an engine is that engine's plain model.
        name: unique among the baselines.
        run: returns a batch's logits (B, C).
    """

    engine: str
    name: str
    run: Run


def full_depth(model: MultiExitModel, folder: Path, trial: Inputs) -> list[Baseline]:
    """Return all baselines that can run on this machine; a log line names those that cannot.

    Args:
        model: in eval mode.
        folder: of the plain exports, which are made if missing (see `plain_exports`).
        trial: a batch to try torch.compile on.
    """
    baselines = [Baseline("torch", "plain torch", partial(on_device, plain, model)), *_compiled(model, trial)]
    if any(find_spec(name) is None for name in ("onnx", "onnxruntime", "onnxscript")):
        log.info("without ONNX Runtime, the strongest baseline on a CPU: pip install 'offramp[onnx]'")
        return baselines
    return [*baselines, *exported(model, folder)]


def exported(model: MultiExitModel, folder: Path) -> list[Baseline]:
    """Return the baselines in ONNX Runtime: float32 and int8, with and without the fusion."""
    return [
        Baseline(engine, f"plain {engine}{suffix}", session(path, fused))
        for engine, path in plain_exports(model, folder).items()
        for fused, suffix in ((False, ""), (True, ", norms fused"))
    ]


def plain_exports(model: MultiExitModel, folder: Path) -> dict[str, Path]:
    """Return the plain model's files by engine, in float32 and in int8; missing ones are exported."""
    paths = {engine: folder / f"plain-{file}" for engine, file in GRAPHS.items()}
    if all(path.exists() for path in paths.values()):
        return paths
    import onnx

    from offramp.inference.onnx.export_blocks import export_whole
    from offramp.inference.onnx.quantize import int8
    from offramp.inference.onnx.torch_export import silence_exporter

    log.info("exporting the plain model to ONNX, in float32 and int8")
    whole = export_whole(copy.deepcopy(model).float().cpu(), forward)
    onnx.save(whole, paths["onnx"])
    with silence_exporter():
        onnx.save(int8(whole), paths["onnx-int8"])
    return paths


def session(path: Path, fused: bool) -> Run:
    """Load a plain export in ONNX Runtime.

    Args:
        path: of the file.
        fused: with the fusion of sums and norms that `OnnxSession` switches off.
    """
    import onnxruntime

    from offramp.inference.onnx.session import SLOW, session_options

    loaded = onnxruntime.InferenceSession(
        path, session_options(), providers=["CPUExecutionProvider"], disabled_optimizers=[] if fused else [SLOW]
    )
    names = [value.name for value in loaded.get_inputs()]

    def run(inputs: Inputs) -> Tensor:
        absent = torch.zeros_like(inputs["input_ids"])  # token types, where the tokenizer returns none
        feeds = {name: inputs.get(name, absent).numpy() for name in names}
        return torch.from_numpy(loaded.run(None, feeds)[0])

    return run


def on_device(function: Callable[[MultiExitModel, Inputs], Tensor], model: MultiExitModel, inputs: Inputs) -> Tensor:
    """Apply a function to a batch on the model's device; return the logits on the CPU."""
    logits = function(model, {name: value.to(model.device) for name, value in inputs.items()})
    return logits.cpu()


def _compiled(model: MultiExitModel, trial: Inputs) -> list[Baseline]:
    log.info("compiling the plain model with torch.compile")
    run = partial(on_device, torch.no_grad()(torch.compile(forward, dynamic=True)), model)
    try:
        run(trial)
    except Exception as error:  # compilers fail in many ways: none is installed, or it cannot trace the encoder
        log.info("torch.compile is not among the baselines: %s", one_line(error))
        return []
    return [Baseline("torch.compile", "plain torch.compile", run)]
