#!/usr/bin/env bash
# Expected by most: the header that the documentation of serve.get_multiplexed_model_id names,
#   "ray_serve_multiplexed_model_id", chooses the model of a request to Ray Serve's proxy.
# What happens: Ray Serve 2.60 reads "serve_multiplexed_model_id" (or with hyphens) alone. With the documented name the
#   model id is "": no error, no warning, and a deployment that has a default model answers with the wrong one.
# Where it matters: clients of multiplexed models that were written from the docstring: status 200, another model's answer.
# Source: measured here; ray/serve/api.py (docstring), ray/serve/_private/constants.py (SERVE_MULTIPLEXED_MODEL_ID)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "ray[serve]==2.60.0" 2>/dev/null
cat > "$folder/models.py" <<'PYTHON'
import re
import sys
import urllib.request

import ray
from ray import serve


@serve.deployment
class Models:
    @serve.multiplexed
    async def load(self, name):
        return f"answer of {name}"

    async def __call__(self, request):
        return await self.load(serve.get_multiplexed_model_id() or "default")


def ask(header):
    request = urllib.request.Request("http://127.0.0.1:8766/", headers={header: "b"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.status, answer.read().decode()


ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, _temp_dir=sys.argv[1])
serve.start(http_options={"host": "127.0.0.1", "port": 8766})
serve.run(Models.bind())
documented = re.search(r'key\s+# "(\w+)"', serve.get_multiplexed_model_id.__doc__).group(1)
print(f"ray {ray.__version__}")
print(f"documented, {documented}: {ask(documented)}")
print(f"read, serve_multiplexed_model_id: {ask('serve_multiplexed_model_id')}")
assert documented == "ray_serve_multiplexed_model_id", documented
assert ask(documented) == (200, "answer of default")
assert ask("serve_multiplexed_model_id") == (200, "answer of b")
serve.shutdown()
ray.shutdown()
print("as described")
PYTHON
RAY_USAGE_STATS_ENABLED=0 "$folder/venv/bin/python" -W ignore "$folder/models.py" "$folder/ray" 2>"$folder/log" || { cat "$folder/log"; exit 1; }
