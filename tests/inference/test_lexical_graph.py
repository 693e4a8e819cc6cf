"""The lexical exit alone as a graph: equal buckets and equal logits, to the last bit."""

from __future__ import annotations

import onnxruntime as ort
import pytest
import torch

from offramp.inference.onnx.torch_export import SIZES, Function, export_function, silence_exporter
from offramp.model.lexical.config import LexicalExit
from offramp.model.modeling import MultiExitModel
from support.models import padded, tiny_model, token_rows


@pytest.mark.slow
def test_a_graph_has_the_same_buckets_and_logits() -> None:
    model = tiny_model(num_labels=5, lexical=LexicalExit(buckets=61, rank=2))

    def call(model: MultiExitModel, ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (*model.lexical_exit.features(ids, mask), model.lexical_exit(ids, mask))

    pair = (torch.ones(SIZES[0], dtype=torch.long), torch.ones(SIZES[1], dtype=torch.long))
    with silence_exporter():
        graph = export_function(model, Function(call, {"ids": pair, "mask": pair}, ("buckets", "weights", "logits")))
    session = ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    for count, longest, extra in ((1, 1, 0), (1, 64, 0), (7, 12, 3), (32, 60, 0)):
        batch = padded(model, token_rows(count, longest=longest, seed=longest), extra)
        inputs = {"ids": batch["input_ids"].numpy(), "mask": batch["attention_mask"].numpy()}
        values = session.run(None, inputs)
        for value, expected in zip(values, call(model, batch["input_ids"], batch["attention_mask"]), strict=True):
            assert torch.equal(torch.from_numpy(value), expected)
