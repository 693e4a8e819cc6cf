"""OpenAI's client against offramp, with a model of several labels or two classes: the URL is the only change.

pip install openai
python openai_moderation.py http://localhost:8080
"""

import sys

from openai import OpenAI

client = OpenAI(base_url=f"{sys.argv[1]}/v1", api_key="any")
answer = client.moderations.create(input=["have a nice day", "nobody wants you here"])
for result in answer.results:
    print(result.flagged, result.category_scores.to_dict())
