"""OpenAI's client against offramp: a choice whose options are the labels of the model that is served.

pip install openai
python openai_decision.py http://localhost:8080 LABEL_0 LABEL_1
"""

import sys

from openai import OpenAI

url, *labels = sys.argv[1:]
client = OpenAI(base_url=f"{url}/v1", api_key="any")
choice = {"type": "choice", "instructions": "Which one is it?", "choices": [{"value": label} for label in labels]}
answer = client.decisions.create(model="gpt-6-luna", input="where is my parcel?", questions=[choice])
(decision,) = answer.answers
print(decision.choice, round(decision.confidence, 3))
