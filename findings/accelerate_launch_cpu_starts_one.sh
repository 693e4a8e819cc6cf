#!/usr/bin/env bash
# Expected by most: `accelerate launch --cpu --num_processes 2 script.py` starts the script in two processes on the CPU.
# What happens: it starts one, without a word. Two take `--mpirun_hostfile` and an MPI, or `--multi_gpu`, which starts them
#   on a machine without a GPU as well. So a run has half the rows a step that its author counts on.
# Where it matters: training on CPUs, and tests of distributed code on machines without a GPU.
# Source: measured here; https://huggingface.co/docs/accelerate/package_reference/cli
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "torch==2.13.0" 2>/dev/null
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "accelerate==1.15.0" 2>/dev/null
cat > "$folder/count.py" <<'PYTHON'
import accelerate

state = accelerate.PartialState(cpu=True)
print(f"process {state.process_index} of {state.num_processes}", flush=True)
PYTHON
started() {
  "$folder/venv/bin/accelerate" launch "$@" --num_processes 2 --num_machines 1 "$folder/count.py" 2>/dev/null | sort -u
}
export CUDA_VISIBLE_DEVICES=
"$folder/venv/bin/python" -c 'import accelerate, torch; print(f"torch {torch.__version__}, accelerate {accelerate.__version__}")'
echo "--cpu --num_processes 2: $(started --cpu | paste -sd ,)"
echo "--multi_gpu --num_processes 2: $(started --multi_gpu | paste -sd ,)"
[ "$(started --cpu)" = "process 0 of 1" ]
[ "$(started --multi_gpu | paste -sd ,)" = "process 0 of 2,process 1 of 2" ]
echo "as described"
