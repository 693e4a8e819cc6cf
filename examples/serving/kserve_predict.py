"""KServe's protocol v1 against offramp: the URL is the only change.

pip install httpx
python kserve_predict.py http://localhost:8080 model
"""

import sys

import httpx

url, name = sys.argv[1:]
model = f"{url}/v1/models/{name}"
assert httpx.get(model).json()["ready"]
body = {"instances": ["where is my parcel", "cancel my order"], "parameters": {"return_probabilities": True}}
for probabilities in httpx.post(f"{model}:predict", json=body).raise_for_status().json()["predictions"]:
    print(probabilities)
