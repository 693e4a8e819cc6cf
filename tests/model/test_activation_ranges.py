"""Ranges of activations: what they hold, which rows and tokens count, and which files are refused."""

import json
from pathlib import Path

import pytest
import torch

from offramp.errors import InvalidInput
from offramp.model import activation_ranges
from offramp.model.activation_ranges import ActivationRanges, measure_ranges, read_ranges
from offramp.types.graph_file import RANGES_FILE
from support.models import padded, rows_for, save_folder, tiny_model


def by_hand(family: str) -> tuple[dict[tuple[int, str], list[torch.Tensor]], ActivationRanges]:
    """Inputs of all linear layers, row by row without padding, by layer in the order of the calls."""
    model, rows = tiny_model(family), rows_for(tiny_model(family), 12)
    calls: dict[tuple[int, str], list[torch.Tensor]] = {}
    counts: dict[str, int] = {}
    shared = family == "albert"
    for name, module in model.backbone.named_modules():
        if isinstance(module, torch.nn.Linear):

            def keep(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...], name: str = name) -> None:
                counts[name] = counts.get(name, 0) + 1
                group = 2 * int("layer_groups.1" in name)  # of two groups, each runs twice
                layer = group + counts[name] if shared else int(name.split("layer.")[1].split(".")[0]) + 1
                calls.setdefault((0 if "mapping_in" in name else layer, name), []).append(inputs[0])

            module.register_forward_pre_hook(keep)
    with torch.no_grad():
        for row in rows:
            counts.clear()
            model(**padded(model, [row]))
    return calls, measure_ranges(tiny_model(family), rows)


@pytest.mark.parametrize("family", ["bert", "albert"])
def test_a_range_is_of_real_tokens_at_each_layer(family: str) -> None:
    calls, ranges = by_hand(family)
    assert {(layer, module) for layer, modules in ranges.by_layer.items() for module in modules} == set(calls)
    for (layer, module), values in calls.items():
        ends = min(value.min().item() for value in values), max(value.max().item() for value in values)
        assert ranges.by_layer[layer][module] == pytest.approx(ends, abs=1e-5)
    assert (ranges.rows, ranges.data) == (12, "rows in memory")


def test_a_range_is_the_mean_over_batches_without_the_tail_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = tiny_model(), rows_for(tiny_model(), 64)
    layer, name = model.backbone.encoder.layer[0], "encoder.layer.0.intermediate.dense"
    values: list[torch.Tensor] = []
    layer.intermediate.dense.register_forward_pre_hook(lambda _, inputs: values.append(inputs[0].clone()))
    order = sorted(range(64), key=lambda number: -len(rows[number]["input_ids"]))
    ends = []
    for start in (0, 32):
        batch = padded(model, [rows[number] for number in order[start : start + 32]])
        with torch.no_grad():
            model(**batch)
        numbers = values[-1][batch["attention_mask"].bool()].flatten().sort().values
        beyond = len(numbers) // 100
        assert beyond > 5
        ends.append((numbers[beyond].item(), numbers[-1 - beyond].item()))
    monkeypatch.setattr(activation_ranges, "TAIL", 0.01)
    low, high = measure_ranges(model, rows).by_layer[1][name]
    assert low == pytest.approx((ends[0][0] + ends[1][0]) / 2, abs=1e-6)
    assert high == pytest.approx((ends[0][1] + ends[1][1]) / 2, abs=1e-6)


def test_layers_together_have_the_union() -> None:
    ranges = ActivationRanges({1: {"a": (-1.0, 2.0)}, 2: {"a": (-3.0, 1.0), "b": (0.0, 1.0)}}, 1, "rows")
    assert ranges.within([1]) == {"a": (-1.0, 2.0)}
    assert ranges.within([1, 2, 3]) == {"a": (-3.0, 2.0), "b": (0.0, 1.0)}


def test_a_file_is_of_its_weights(tmp_path: Path) -> None:
    folder = save_folder(tmp_path / "model", tiny_model())
    assert ActivationRanges.load(folder) is None
    ranges = measure_ranges(tiny_model(), rows_for(tiny_model(), 4), "a file")
    ranges.save(folder)
    kept = ActivationRanges.load(folder)
    assert kept is not None
    assert (kept.by_layer, kept.rows, kept.data) == (ranges.by_layer, 4, "a file")
    tiny_model().save_pretrained(folder)  # keeps those of its own weights
    assert ActivationRanges.load(folder) == kept
    text = (folder / RANGES_FILE).read_text(encoding="utf-8")
    tiny_model(seed=3).save_pretrained(folder)
    assert not (folder / RANGES_FILE).exists()
    (folder / RANGES_FILE).write_text(text, encoding="utf-8")
    assert ActivationRanges.load(folder) is None
    assert read_ranges(folder) == kept
    (folder / RANGES_FILE).write_text("{", encoding="utf-8")
    tiny_model(seed=3).save_pretrained(folder)
    assert (folder / RANGES_FILE).read_text(encoding="utf-8") == "{"  # cannot be read, so it stays


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"format": 2}, "format 2; this version of offramp reads up to 1"),
        ({"by_layer": {"1": {"a": [1.0, -1.0]}}}, "a range is two finite numbers, the smaller one first"),
        ({"by_layer": {"1": {"a": [0.0, float("nan")]}}}, "a range is two finite numbers"),
        ({"by_layer": None}, "not the ranges that `offramp train` wrote"),
        ({"rows": "many"}, "not the ranges that `offramp train` wrote"),
    ],
)
def test_a_file_that_holds_no_ranges_is_refused(change: dict[str, object], reason: str, tmp_path: Path) -> None:
    data = {"format": 1, "by_layer": {"1": {"a": [0.0, 1.0]}}, "rows": 3, "data": "d", "weights": "w"}
    (tmp_path / RANGES_FILE).write_text(json.dumps(data | change))
    with pytest.raises(InvalidInput, match=reason) as refused:
        read_ranges(tmp_path)
    assert str(refused.value).startswith(str(tmp_path / RANGES_FILE))


def test_no_rows_and_values_that_are_not_finite_are_refused() -> None:
    model = tiny_model()
    with pytest.raises(InvalidInput, match="there are no rows"):
        measure_ranges(model, [])
    torch.nn.init.constant_(model.backbone.embeddings.LayerNorm.bias, torch.nan)
    with pytest.raises(InvalidInput, match="are not finite on these rows"):
        measure_ranges(model, rows_for(model, 2))
