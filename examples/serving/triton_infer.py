"""Triton's client against offramp: the URL is the only change.

pip install 'tritonclient[http]'
python triton_infer.py localhost:8080 model
"""

import sys

import numpy as np
import tritonclient.http as triton

url, model = sys.argv[1:]
client = triton.InferenceServerClient(url.removeprefix("http://"))
assert client.is_server_ready()
assert client.is_model_ready(model)

texts = np.array(["where is my parcel", "cancel my order"], dtype=object)
tensor = triton.InferInput("text", [len(texts)], "BYTES")
tensor.set_data_from_numpy(texts)  # binary data; binary_data=False sends JSON
answer = client.infer(model, [tensor], request_compression_algorithm="gzip")
for label, score in zip(answer.as_numpy("label"), answer.as_numpy("score"), strict=True):
    print(label.decode(), round(float(score), 3))
client.close()
