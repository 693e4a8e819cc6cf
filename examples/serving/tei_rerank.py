"""text-embeddings-inference's `/rerank` against offramp, with a model of pairs: the URL is the only change.

pip install httpx
python tei_rerank.py http://localhost:8080
"""

import sys

import httpx

body = {"query": "where is my parcel", "texts": ["How to cancel", "How to track a parcel"], "return_text": True}
for rank in httpx.post(f"{sys.argv[1]}/rerank", json=body).raise_for_status().json():
    print(rank["index"], round(rank["score"], 3), rank["text"])
