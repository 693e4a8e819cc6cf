#!/usr/bin/env bash
# Expected by most: a client's array of an output of the type BYTES has the same Python type, however the answer travels.
# What happens: in tritonclient's HTTP client `as_numpy` gives bytes where the server sent the tensor behind the JSON, and
#   str where it sent it within the JSON. Which one that is is the server's to decide, unless the client names the output
#   and its `binary_data`: with no outputs named tritonclient asks for binary data, and a server may answer in JSON, which
#   the protocol allows. Code that calls `.decode()` on labels fails then, and a comparison with a bytes literal is False.
# Where it matters: one client before several servers of the Open Inference Protocol (Triton, KServe, MLServer), and tests
#   that run against one of them.
# Source: measured here; tritonclient/http/_infer_result.py
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "tritonclient[http]==2.73.0" "numpy==2.4.6" 2>/dev/null
cat > "$folder/ask.py" <<'PYTHON'
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import version

import numpy as np
import tritonclient.http as triton


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        output = {"name": "label", "shape": [1], "datatype": "BYTES"}
        if "json" in self.path:
            tail, output["data"] = b"", ["good"]
        else:
            tail = (4).to_bytes(4, "little") + b"good"
            output["parameters"] = {"binary_data_size": len(tail)}
        head = json.dumps({"model_name": "m", "outputs": [output]}).encode()
        self.send_response(200)
        if tail:
            self.send_header("Inference-Header-Content-Length", str(len(head)))
        self.send_header("content-length", str(len(head) + len(tail)))
        self.end_headers()
        self.wfile.write(head + tail)

    def log_message(self, *arguments):
        pass


server = HTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
client = triton.InferenceServerClient(f"127.0.0.1:{server.server_port}")
text = triton.InferInput("text", [1], "BYTES")
text.set_data_from_numpy(np.array(["a"], dtype=object))
print(f"tritonclient {version('tritonclient')}")
types = {}
for model in ("json", "binary"):
    label = client.infer(model, [text]).as_numpy("label")[0]
    types[model] = type(label)
    print(f"an answer in {model}: {label!r}, {type(label).__name__}; equal to b'good': {label == b'good'}")
assert types == {"json": str, "binary": bytes}, types
print("as described")
PYTHON
"$folder/venv/bin/python" "$folder/ask.py"
