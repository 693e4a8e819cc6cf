"""Hugging Face's client against offramp: the URL is the only change.

pip install huggingface_hub
python huggingface_client.py http://localhost:8080
"""

import sys

from huggingface_hub import InferenceClient

client = InferenceClient(model=sys.argv[1])
for label in client.text_classification("where is my parcel", top_k=2):
    print(label.label, round(label.score, 3))
