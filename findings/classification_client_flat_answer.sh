#!/usr/bin/env bash
# Expected by most: what a transformers pipeline returns for a text is what Hugging Face's client reads from a server: a
#   container that answers with its pipeline's output works with InferenceClient, or the client says what is wrong.
# What happens: the pipeline returns a flat list, [{"label", "score"}]. The client's text_classification takes element [0]
#   of the answer, since the hosted service nests it once more, and lists that element, here a dict: it returns
#   ["label", "score"], the names of the keys, as if these were the classes. There is no error.
# Where it matters: one's own container behind InferenceClient(model=URL). A server for this client has to nest its answer
#   also to one text.
# Source: measured here; huggingface_hub, inference/_client.py, `text_classification`
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "huggingface_hub==2.4.0" 2>/dev/null
cat > "$folder/ask.py" <<'PYTHON'
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import huggingface_hub
from huggingface_hub import InferenceClient

FLAT = [{"label": "good", "score": 0.9}]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        body = json.dumps(FLAT if "flat" in self.path else [FLAT]).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


server = HTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
print(f"huggingface_hub {huggingface_hub.__version__}")
outcomes = {}
for form in ("nested", "flat"):
    client = InferenceClient(model=f"http://127.0.0.1:{server.server_port}/{form}")
    try:
        answer = client.text_classification("a text")
        outcomes[form] = repr([(row["label"], row["score"]) if hasattr(row, "keys") else row for row in answer])
    except Exception as error:
        outcomes[form] = f"{type(error).__name__}: {error}"
    print(f"{form}: {outcomes[form]}")
assert outcomes == {"nested": "[('good', 0.9)]", "flat": "['label', 'score']"}, outcomes
print("as described")
PYTHON
"$folder/venv/bin/python" "$folder/ask.py"
