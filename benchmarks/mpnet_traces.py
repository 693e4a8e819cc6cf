"""Write the traces of MPNet-base's three tasks in float16, small enough to be kept, for comparisons to come.

    python benchmarks/mpnet_traces.py --data ../shared/data

`results/traces/README.md` says what they hold. They are those of `speed_models.py --encoder mpnet`, in torch.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from machine import provenance
from offramp.data.rows import Text
from speed_models import Prepared, add_options, all_prepared

RESULTS = Path(__file__).parent / "results" / "traces"


def text_hash(text: Text) -> str:
    """Return the first 8 bytes, in hex, of the SHA-256 of a text; of a pair, of both with a zero byte between them."""
    sides = (text,) if isinstance(text, str) else text
    return hashlib.sha256("\0".join(sides).encode()).digest()[:8].hex()


def write(prepared: Prepared) -> None:
    """Write a task's trace, as `Trace.save` does but for the logits' type; the hashes are metadata."""
    trace = prepared.trace("torch")
    tensors = {"layers": trace.layers, "labels": trace.labels, "tokens": trace.tokens, "fit_rows": trace.fit_rows}
    present = {name: values for name, values in tensors.items() if values is not None}
    words = {
        "problem_type": str(trace.problem_type),
        "about": json.dumps(dict(trace.provenance)),
        "made": json.dumps(provenance()),
        "text_hashes": " ".join(map(text_hash, prepared.held_out.texts)),
    }
    RESULTS.mkdir(exist_ok=True)
    save_file(
        {"logits": trace.logits.to(torch.float16), **present}, RESULTS / f"{prepared.cell.task}.safetensors", words
    )


def main() -> None:
    """Write the trace of every task that is finished."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.set_defaults(encoder="mpnet")
    for prepared in all_prepared(parser.parse_args()):
        if prepared.is_recorded("torch"):
            write(prepared)


if __name__ == "__main__":
    main()
