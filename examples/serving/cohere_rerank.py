"""Cohere's client against offramp, with a model of pairs: the URL is the only change.

Serve the model under the name that the client sends: offramp serve model --served-model-name rerank-v3.5

pip install cohere
python cohere_rerank.py http://localhost:8080 rerank-v3.5
"""

import sys

import cohere

url, model = sys.argv[1:]
documents = ["A parcel takes two days.", "Orders are cancelled on the web.", "We are open on Sunday."]
query = "how long does delivery take"
with cohere.Client(api_key="any", base_url=url) as client:  # client.v2 is what ClientV2 sends
    answer = client.v2.rerank(model=model, query=query, documents=documents, top_n=2)
for result in answer.results:
    print(documents[result.index], round(result.relevance_score, 3))
