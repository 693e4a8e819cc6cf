"""A server that `serving_race.py` compares with: LitServe, around a full-depth model.

    python benchmarks/serving_litserve.py --port 8000 --folder MODEL --export FILES --model "exact int8" --workers 2

It takes {"inputs": TEXT} at /predict and answers as text-embeddings-inference does.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import litserve
import msgspec
from fastapi import Response

from offramp.data.padding import Array
from serving_engines import FullDepth, add_model_options


class Classifier(litserve.LitAPI):
    """A full-depth model, one in each of LitServe's processes."""

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(max_batch_size=options.batch, batch_timeout=options.timeout_ms / 1000)
        self.options = options

    def setup(self, device: str) -> None:
        """Load the model."""
        options = self.options
        self.model = FullDepth(options.folder, options.export, options.model, options.threads)

    def decode_request(self, request: dict[str, str]) -> dict[str, list[int]]:
        """Return a text's tokens."""
        return self.model.tokens(request["inputs"])

    def batch(self, inputs: Sequence[dict[str, list[int]]]) -> list[dict[str, list[int]]]:
        """Return the rows of a batch."""
        return list(inputs)

    def predict(self, rows: Any) -> Array:
        """Return the probabilities of a batch, or of a row where there are no batches."""
        return self.model.probabilities(rows) if isinstance(rows, list) else self.model.probabilities([rows])[0]

    def unbatch(self, output: Array) -> list[Array]:
        """Return a batch's rows."""
        return list(output)

    def encode_response(self, output: Array) -> Response:
        """Return the answer's bytes, which is faster than LitServe's encoder."""
        return Response(msgspec.json.encode(self.model.ranked(output)), media_type="application/json")


def main() -> None:
    """Serve as the options say, until the process is ended."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_options(parser)
    parser.add_argument("--workers", type=int, default=1, help="processes with a model")
    parser.add_argument("--batch", type=int, default=1, help="the most rows of a batch")
    parser.add_argument("--timeout-ms", type=float, default=0.0, help="how long a batch waits for more rows")
    parser.add_argument("--fast", action="store_true", help="the queue over ZeroMQ")
    options = parser.parse_args()
    server = litserve.LitServer(
        Classifier(options), accelerator="cpu", workers_per_device=options.workers, fast_queue=options.fast
    )
    server.run(host="127.0.0.1", port=options.port, log_level="error", access_log=False, generate_client_file=False)


if __name__ == "__main__":
    main()
