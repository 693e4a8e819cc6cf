"""TypeSafe's client against offramp: a choice whose options are the labels of the model that is served.

pip install typesafe-sdk
python systemone_choice.py http://localhost:8080 LABEL_0 LABEL_1
"""

import sys

from typesafe_sdk import Choice, TypeSafeClient

url, *labels = sys.argv[1:]
with TypeSafeClient(api_key="any", base_url=url) as client:
    team = Choice(instructions="Which one is it?", criteria=dict.fromkeys(labels))
    answer = client.system_one(state="where is my parcel?", questions={"team": team})
print(answer.choices["team"].choice, round(answer.choices["team"].confidence, 3))
