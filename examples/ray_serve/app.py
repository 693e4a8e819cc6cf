"""A model behind Ray Serve, with a ladder and up to four replicas.

MODEL=model serve run app:app (in this folder; MODEL is the path of a model, and LADDER=1 adds the ladder)
"""

import os

from offramp.cluster.ray_serve import deployment
from offramp.serving.served import Limits
from offramp.serving.settings import LadderSettings, ModelSettings, ServerSettings

server = ServerSettings(
    ModelSettings(os.environ["MODEL"], engine=os.environ.get("ENGINE", "auto")),
    Limits(max_client_batch_size=64),
    LadderSettings(latency_target_ms=50) if "LADDER" in os.environ else None,
)
app = deployment(server, num_cpus=int(os.environ.get("CORES", "1")), max_replicas=4)
