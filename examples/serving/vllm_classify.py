"""vLLM's routes for classifiers against offramp: the URL is the only change.

pip install httpx
python vllm_classify.py http://localhost:8080
"""

import sys

import httpx

with httpx.Client(base_url=sys.argv[1]) as client:
    model = client.get("/v1/models").json()["data"][0]["id"]
    body = {"model": model, "input": ["where is my parcel", "cancel my order"], "truncate_prompt_tokens": -1}
    answer = client.post("/classify", json=body).raise_for_status().json()
for row in answer["data"]:
    print(row["label"], round(max(row["probs"]), 3))
