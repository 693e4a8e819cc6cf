"""text-embeddings-inference's routes against offramp: the URL is the only change.

pip install httpx
python tei_predict.py http://localhost:8080
"""

import sys

import httpx

with httpx.Client(base_url=sys.argv[1]) as client:
    assert client.get("/health").status_code == 200
    print(client.get("/info").json()["model_type"])
    one = client.post("/predict", json={"inputs": "where is my parcel"}).raise_for_status().json()
    print(one[0]["label"], round(one[0]["score"], 3))
    batch = {"inputs": [["where is my parcel"], ["cancel my order"]], "truncate": True}  # a flat list is one pair
    for row in client.post("/predict", json=batch).raise_for_status().json():
        print(row[0]["label"], round(row[0]["score"], 3))
