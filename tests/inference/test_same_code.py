"""Blocks that differ in their weights alone share an export; all others do not."""

from collections.abc import Callable, Sequence

import pytest
import torch

from offramp.inference.onnx.export_blocks import _exit_spec, _inputs, export_parts
from offramp.inference.onnx.same_code import BlockCode, weights_for
from offramp.inference.onnx.torch_export import Function
from offramp.model.modeling import MultiExitModel
from offramp.model.token_exit.config import TokenExit
from support.models import LAYERS, tiny_model


@torch.no_grad()
def blocks_of(model: MultiExitModel) -> list[BlockCode]:
    inputs = _inputs(model)
    carries = [model.embed({name: pair[example] for name, pair in inputs.items()}) for example in range(2)]
    blocks = []
    for exit in range(len(model.layers)):
        spec, carries = _exit_spec(model, range(exit, exit + 1), carries)
        blocks.append(spec.block)
    return blocks


def shared(model: MultiExitModel, one: int, other: int) -> dict[str, torch.Tensor] | None:
    blocks = blocks_of(model)
    with torch.no_grad():
        return weights_for(model, blocks[one], blocks[other])


def test_a_block_is_the_first_one_with_its_own_weights() -> None:
    model = tiny_model()
    weights = shared(model, 0, 2)
    assert weights is not None
    name = "model.backbone.encoder.layer.{}.attention.self.query.weight"
    parameters = dict(model.named_parameters(prefix="model"))
    assert torch.equal(weights[name.format(0)], parameters[name.format(2)])
    assert torch.equal(weights["model.heads.classifiers.0.weight"], parameters["model.heads.classifiers.2.weight"])


def other_activation(model: MultiExitModel) -> None:
    model.backbone.encoder.layer[2].intermediate.intermediate_act_fn = torch.nn.ReLU()


def other_setting(model: MultiExitModel) -> None:
    model.backbone.encoder.layer[2].output.LayerNorm.eps = 0.1


def other_module(model: MultiExitModel) -> None:
    model.backbone.encoder.layer[2].output.dropout = torch.nn.Identity()


@pytest.mark.parametrize("change", [other_activation, other_setting, other_module])
def test_a_block_of_other_code_is_exported_by_itself(change: Callable[[MultiExitModel], None]) -> None:
    model = tiny_model()
    change(model)
    assert shared(model, 0, 2) is None
    assert shared(model, 0, 1) is not None


def test_local_and_global_attention_are_not_the_same_code() -> None:
    model = tiny_model("modernbert")
    kinds = [layer.attention_type for layer in model.backbone.layers]
    local = [index for index, kind in enumerate(kinds) if kind == "sliding_attention"]
    full = [index for index, kind in enumerate(kinds) if kind == "full_attention"]
    assert shared(model, full[-1], local[-1]) is None


def test_where_a_block_depends_on_its_number_the_outputs_differ() -> None:
    model = tiny_model()
    blocks = blocks_of(model)
    with torch.no_grad():
        results = [tensor + 1 for tensor in blocks[2].results]
        other = BlockCode(blocks[2].function, blocks[2].written, blocks[2].modules, results)
        assert weights_for(model, blocks[0], other) is None


@pytest.mark.parametrize(("token_exit", "blocks"), [(None, 1), (TokenExit(keep_ratio={1: 0.7}), LAYERS)])
def test_with_token_exit_every_block_is_exported_by_itself(
    token_exit: TokenExit | None, blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Enough(Exception):
        pass

    def stop(model: MultiExitModel, functions: Sequence[Function]) -> None:
        names.extend(function.outputs[-1] for function in functions)
        raise Enough

    names: list[str] = []
    monkeypatch.setattr("offramp.inference.onnx.export_blocks.export_functions", stop)
    with pytest.raises(Enough):
        export_parts(tiny_model(token_exit=token_exit), "of a test")
    assert names.count("logits") == blocks
