#!/usr/bin/env bash
# Expected by most: serve.run raises what the constructor of a deployment raised, or an error with its text: a model file
#   that is not there, a setting out of its range.
# What happens: Ray Serve 2.60 tries three times, then serve.run raises RuntimeError("Deploying application NAME failed:
#   Failed to update the deployments ['NAME']."), without a word of the reason and without a cause. The reason is in
#   serve.status(), as the last line of the deployment's message, and in the log of the controller.
# Where it matters: scripts and tests that print the exception of serve.run, and drivers with log_to_driver=False: nothing
#   says why a model is not served.
# Source: measured here; ray/serve/_private/application_state.py
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "ray[serve]==2.60.0" 2>/dev/null
cat > "$folder/run.py" <<'PYTHON'
import sys

import ray
from ray import serve


@serve.deployment
class Model:
    def __init__(self, file):
        with open(file) as opened:
            self.weights = opened.read()


ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, _temp_dir=sys.argv[1])
serve.start(http_options={"host": "127.0.0.1", "port": 8767})
try:
    serve.run(Model.bind("/models/missing"))
except RuntimeError as error:
    raised = error
message = serve.status().applications["default"].deployments["Model"].message
print(f"ray {ray.__version__}")
print(f"serve.run raises: {raised}; its cause is {raised.__cause__}")
print(f"serve.status() has: ... {message.splitlines()[-1]}")
serve.shutdown()
ray.shutdown()
assert "missing" not in str(raised), raised
assert raised.__cause__ is None, raised.__cause__
assert "/models/missing" in message.splitlines()[-1], message
print("as described")
PYTHON
RAY_USAGE_STATS_ENABLED=0 "$folder/venv/bin/python" -W ignore "$folder/run.py" "$folder/ray" 2>"$folder/log" || { cat "$folder/log"; exit 1; }
