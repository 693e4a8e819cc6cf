#!/usr/bin/env bash
# Expected by most: a pipeline of Ray Data whose actors ask for as many cores as the machine has runs a little slower at
#   its start: tasks that read take their turn.
# What happens: it never begins. The actors are placed first and keep their cores for good, the read task waits for one,
#   and no error and no row comes. One core less for the actors, or read tasks with num_cpus=0, and the same pipeline
#   ends in seconds.
# Where it matters: batch inference with `map_batches(Model, compute=ActorPoolStrategy(size=CORES))` on a small machine,
#   in a container, or on a cluster whose size is known and used up.
# Remedy: actors that ask for less than a core (num_cpus=0.9), or num_cpus=0 for the read.
# Source: measured here.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "ray[data]==2.60.0" 2>/dev/null
cat > "$folder/cores.py" <<'PYTHON'
import logging
import sys
import threading

import ray
from ray.data import ActorPoolStrategy


class Same:
    def __call__(self, batch):
        return batch


def rows_within(seconds, cores_of_an_actor, cores_of_a_read):
    """The rows that a pipeline with two actors on two cores gives in some seconds."""
    found = []

    def read():
        dataset = ray.data.range(100, override_num_blocks=4).map(lambda row: row, num_cpus=cores_of_a_read)
        answered = dataset.map_batches(Same, compute=ActorPoolStrategy(size=2), num_cpus=cores_of_an_actor)
        for batch in answered.iter_batches(batch_size=None):
            found.append(len(batch["id"]))

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(seconds)
    return sum(found)


ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR, _temp_dir=sys.argv[1])
ray.data.DataContext.get_current().enable_progress_bars = False
less = rows_within(60, 0.5, 1)
none = rows_within(60, 1, 0)
all_cores = rows_within(25, 1, 1)
print(f"ray {ray.__version__}, two cores, two actors, 100 rows:")
print(f"actors of half a core: {less} rows; reads without a core: {none}; actors and reads of a core each: {all_cores}")
assert (less, none, all_cores) == (100, 100, 0)
print("as described")
PYTHON
RAY_USAGE_STATS_ENABLED=0 "$folder/venv/bin/python" "$folder/cores.py" "$folder/ray" 2>/dev/null
