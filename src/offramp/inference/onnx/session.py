"""Run an exported graph: numpy in, numpy out. No torch, no transformers."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from offramp.data.padding import Array
from offramp.errors import InvalidInput, one_line
from offramp.inference.graph_inputs import GraphInputs, GraphOutput
from offramp.inference.onnx.metadata import GraphMetadata
from offramp.inference.onnx.runtime import onnxruntime
from offramp.types.graph_file import WEIGHTS, with_data_at

SLOW = "SkipLayerNormFusion"  # on CPUs slower than the sum and the norm that it replaces
WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"


def session_options(threads: int | None = None) -> onnxruntime.SessionOptions:
    """Return ONNX Runtime's options with a number of threads; None = OMP_NUM_THREADS, else one a core.

    The variable may be a list of numbers for nested loops, of which the first counts, as in OpenMP.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    options.intra_op_num_threads = threads or (int(first) if first.isdecimal() else 0)
    return options


def _open(source: str | os.PathLike[str] | bytes, threads: int | None) -> onnxruntime.InferenceSession:
    options = session_options(threads)
    options.enable_mem_pattern = False  # each branch would hold its own plan; together they outgrow the cache
    with _readable(source, options) as content:
        return onnxruntime.InferenceSession(
            content, options, providers=["CPUExecutionProvider"], disabled_optimizers=[SLOW]
        )


@dataclass(frozen=True)
class OnnxSession:
    """An exported model, ready to run.

    Pickled, it is its source, which is loaded again.

    Attributes:
        metadata: of the file.
        source: the file's absolute path, or its bytes.
        threads: as in `session_options`.
        session: of ONNX Runtime.
    """

    metadata: GraphMetadata
    source: str | bytes
    threads: int | None
    session: onnxruntime.InferenceSession = field(repr=False, compare=False)

    def __reduce__(self) -> tuple[Callable[..., OnnxSession], tuple[Any, ...]]:
        return _load_again, (self.source, self.threads, self.metadata)

    @classmethod
    def load(cls, source: str | os.PathLike[str] | bytes, threads: int | None = None) -> OnnxSession:
        """Load a file, or its bytes; threads as in `session_options`.

        Raises:
            InvalidInput: `offramp export` did not write it.
        """
        name = "the graph" if isinstance(source, bytes) else os.fspath(source)
        try:
            session = _open(source, threads)
            metadata = GraphMetadata.of(session.get_modelmeta().custom_metadata_map)
            source = source if isinstance(source, bytes) else os.path.abspath(source)
            return cls(metadata, source, threads, session)
        except InvalidInput as error:
            raise InvalidInput(f"{name}: {error}") from None
        except Exception as error:  # ONNX Runtime's own have no common root
            raise InvalidInput(f"{name}: ONNX Runtime cannot load it ({one_line(error)})") from None

    def run(self, inputs: Mapping[str, Array], thresholds: float | Sequence[float] | Array) -> GraphOutput:
        """Answer a batch; each sample leaves at the first exit where its score reaches its threshold.

        Args:
            inputs: `input_ids` (B, T), `attention_mask` (B, T) with padding on the right, `token_type_ids` where the
                model has them; or `pixel_values`. Without a mask every token is real, without types all are 0.
            thresholds: one number, one for each exit but the last, or (B, L-1) with a row for each sample;
                inf = never.

        Raises:
            InvalidInput: no rows or no tokens; inputs that do not fit; the wrong number of thresholds, or a NaN.
        """
        arrays = self.inputs.arrays(inputs)
        limits = self.inputs.limits(thresholds, len(next(iter(arrays.values()))))
        outputs = self.session.run(None, {**arrays, "thresholds": limits})
        certainty = outputs[3] if self.metadata.certainty else None
        return GraphOutput(outputs[0], outputs[1], outputs[2], certainty)

    @cached_property
    def inputs(self) -> GraphInputs:
        """Return the graph's inputs but the thresholds."""
        values = [value for value in self.session.get_inputs() if value.name != "thresholds"]
        axes = {value.name: len(value.shape) for value in values}
        return GraphInputs(axes, len(self.metadata.layers), lambda tokens: max(tokens, 2))  # some branches need two


def _load_again(source: str | bytes, threads: int | None, metadata: GraphMetadata) -> OnnxSession:
    """Load the graph of a session that is pickled.

    Raises:
        InvalidInput: the file is no longer there, or holds another graph.
    """
    name = "the graph" if isinstance(source, bytes) else source
    if not isinstance(source, bytes) and not os.path.exists(source):
        raise InvalidInput(f"{name}: no such file; a predictor loads its graph from there again")
    graph = OnnxSession.load(source, threads)
    if graph.metadata != metadata:
        raise InvalidInput(f"{name}: another graph than the predictor's; load the predictor anew")
    return graph


@contextmanager
def _readable(source: str | os.PathLike[str] | bytes, options: onnxruntime.SessionOptions) -> Iterator[str | bytes]:
    """Yield a graph for ONNX Runtime: its path, or its content where links are in the way (see `weights_beside`)."""
    if isinstance(source, bytes):
        yield source
        return
    path = Path(source)
    data = path.with_name(path.name + WEIGHTS)
    with weights_beside(path) as target:
        if not path.is_symlink() and target == Path(os.path.realpath(path.parent), data.name):
            yield os.fspath(path)
            return
        options.add_session_config_entry(WEIGHTS_FOLDER, os.fspath(target.parent))
        yield with_data_at(path.read_bytes(), data.name, target.name)


@contextmanager
def weights_beside(graph: Path) -> Iterator[Path]:
    """Yield the file with a graph's weights, without links, for as long as they are loaded.

    ONNX Runtime refuses weights behind a symbolic link, as in the cache of the hub: they must be a regular file in a
    folder that it is given. So this is the file to which the link leads. It refuses a file of two names (hard links) as
    well, which is copied for as long as loading takes.
    """
    data = graph.with_name(graph.name + WEIGHTS)
    target = Path(os.path.realpath(data))
    if not target.exists() or target.stat().st_nlink == 1:
        yield target
        return
    with TemporaryDirectory(prefix="offramp-", ignore_cleanup_errors=True) as copies:
        yield Path(shutil.copyfile(target, Path(copies, data.name)))
