"""Full-depth contestants in OpenVINO: float32, bf16 where the processor has it, and int8 of NNCF.

A run with several workers has as many streams, each with its own request. A new length of a batch is compiled when it
first comes; all have come before the timing begins.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import numpy as np

from offramp.bench.baselines import Runtime, log
from offramp.bench.texts import Batch, BatchRun
from offramp.data.padding import Array

if TYPE_CHECKING:
    from onnx import ModelProto


def in_openvino(graph: ModelProto, folder: Path, examples: Sequence[Batch]) -> list[Runtime]:
    """Return the ways to run exits in OpenVINO; a log line says where it is not installed.

    Args:
        graph: of `export_exits`.
        folder: gets the graph as a file.
        examples: batches of one text, from which int8 takes the ranges of activations.
    """
    if find_spec("openvino") is None:
        log.info("without OpenVINO: pip install openvino nncf")
        return []
    import onnx
    import openvino

    core = openvino.Core()
    path = folder / "exits.onnx"
    onnx.save(graph, path)
    plain = cache(lambda: core.read_model(path))
    models: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
        "float32": (plain, {"INFERENCE_PRECISION_HINT": "f32"})
    }
    if "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        models["bf16"] = (plain, {"INFERENCE_PRECISION_HINT": "bf16"})
    if find_spec("nncf") is None:
        log.info("without int8 of OpenVINO: pip install nncf")
    else:
        models["int8"] = (cache(lambda: quantized(core.read_model(path), examples)), {})
    return [
        Runtime(f"plain openvino {kind}", "openvino", partial(_load, core, model, settings))
        for kind, (model, settings) in models.items()
    ]


def quantized(model: Any, examples: Sequence[Batch]) -> Any:
    """Return a model of OpenVINO in int8, with ranges from examples."""
    import nncf

    from offramp.inference.openvino.quantize import quiet_nncf

    with quiet_nncf():
        data = nncf.Dataset([dict(batch) for batch in examples])
        return nncf.quantize(model, data, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(examples))


def _load(
    core: Any,
    model: Callable[[], Any],
    settings: Mapping[str, Any],
    output: str,
    threads: int,
    workers: int,
) -> BatchRun:
    """Compile the part of a model that leads to one output; there is a request for each worker."""
    import openvino

    whole = model()
    results = [result for result in whole.results if output in result.input_value(0).get_names()]
    part = openvino.Model(results, whole.get_parameters(), output)
    streams = {"NUM_STREAMS": workers, "INFERENCE_NUM_THREADS": threads * workers}
    compiled = core.compile_model(part, "CPU", {**streams, **settings})
    requests: SimpleQueue[Any] = SimpleQueue()
    for _ in range(workers):
        requests.put(compiled.create_infer_request())

    def run(batch: Batch) -> Array:
        request = requests.get()
        try:
            request.infer(batch, share_inputs=True)
            logits: Array = np.array(request.get_output_tensor(0).data, np.float32)
        finally:
            requests.put(request)
        return logits

    return run
