"""The process that explains rows: `python -m offramp.serving.ui.explain_process FD`, with one end of a socket pair.

Lines of JSON: first the model (`ExplainedModel`), then for each row its logits (`Row`), answered by a line with a list
of `offramp.serving.ui.explain.ExplainedPoint`. It ends with the socket. It imports torch, which the server's other
processes do without, and yields the processor to them.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys

import msgspec
import numpy as np
import torch

from offramp.serving.ui.explain import Explainable
from offramp.serving.ui.explainer import ExplainedModel, Row
from offramp.types.operating_point import OperatingPoint

NICENESS = 10


def main() -> None:
    """Answer the socket that the command line names."""
    for name in (signal.SIGINT, signal.SIGTERM):  # the process that speaks HTTP decides when this one ends
        signal.signal(name, signal.SIG_IGN)
    os.nice(NICENESS)
    torch.set_num_threads(1)
    with socket.socket(fileno=int(sys.argv[1])) as connection, connection.makefile("rwb") as lines:
        model = msgspec.json.decode(lines.readline(), type=ExplainedModel)
        points = {name: None if data is None else OperatingPoint.from_json(data) for name, data in model.points.items()}
        explainable = Explainable(model.problem_type, model.labels, model.layers, points)
        for line in lines:
            row = msgspec.json.decode(line, type=Row)
            explained = explainable.explain(row.layers, np.array(row.logits, np.float32))
            lines.write(msgspec.json.encode(explained) + b"\n")
            lines.flush()


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        main()
