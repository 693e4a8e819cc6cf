#!/usr/bin/env bash
# Expected by most: DistributedDataParallel trains a model whatever the types of its buffers; on the CPU, over gloo, a
#   table of 8-bit numbers or token ids of 64 bits is sent to the other processes when the model is wrapped.
# What happens: all types work but one. A buffer of int16 ends the wrapping with "Invalid scalar type"; the message names
#   neither the buffer nor its type. int8, uint8, int32, int64, bool, float16 and bfloat16 are sent.
# Where it matters: models with weights or tables in 16-bit fixed point beside layers that are trained, on several CPU
#   processes (torchrun, the Trainer). They store int32, or name the buffers in `_ddp_params_and_buffers_to_ignore`.
# Source: measured here; https://docs.pytorch.org/docs/stable/generated/torch.nn.parallel.DistributedDataParallel.html
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "torch==2.13.0" "numpy==2.4.6" 2>/dev/null
cat > "$folder/buffers.py" <<'PYTHON'
import sys

import torch
from torch import distributed, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

TYPES = ("int64", "int32", "int16", "int8", "uint8", "bool", "float16", "bfloat16")


class WithTable(nn.Module):
    def __init__(self, dtype):
        super().__init__()
        self.map = nn.Linear(2, 2)
        self.register_buffer("table", torch.zeros(3, dtype=dtype))


def wrap(rank, folder):
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    for name in TYPES:
        try:
            DistributedDataParallel(WithTable(getattr(torch, name)))
            outcome = "wrapped"
        except RuntimeError as error:
            outcome = str(error)
        if rank == 0:
            print(f"a buffer of {name}: {outcome}", flush=True)
        assert (outcome == "Invalid scalar type") == (name == "int16"), (name, outcome)


if __name__ == "__main__":
    print(f"torch {torch.__version__}", flush=True)
    multiprocessing.spawn(wrap, (sys.argv[1],), nprocs=2)
    print("as described")
PYTHON
OMP_NUM_THREADS=1 "$folder/venv/bin/python" "$folder/buffers.py" "$folder" 2>/dev/null
