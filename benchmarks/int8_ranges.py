"""What do the ranges of activations cost int8: with all values, and without a tail at either end?

    python benchmarks/int8_ranges.py --data ../shared/data --encoder default --encoder all-mpnet-base-v2

CLINC150. Linear exits are fitted by L-BFGS on 2,500 training rows over the mean of a frozen encoder's tokens after each
layer, so that no training hides what 8 bits change; ranges are measured on 400 of these rows. Scores are on 1,000
validation rows, in torch and in ONNX Runtime's int8 graph. Writes `benchmarks/results/int8_ranges.json` and `.md`.
Eight minutes on one core, most of it for the twelve layers of MPNet.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from machine import as_lines, provenance
from offramp.data.batching import collate, encode, length_sorted
from offramp.data.columns import Columns
from offramp.data.examples import Examples, read_examples, subsample
from offramp.inference.export import with_steps
from offramp.inference.onnx.assemble import assemble
from offramp.inference.onnx.export_blocks import export_parts
from offramp.inference.onnx.quantize import exact_int8
from offramp.inference.onnx.session import OnnxSession
from offramp.inference.onnx_engine import OnnxEngine
from offramp.inference.record import record
from offramp.model import activation_ranges
from offramp.model.default_encoder import default_encoder
from offramp.model.hub import load_tokenizer
from offramp.model.modeling import MultiExitModel
from offramp.policies.registry import load_policy, policy_to_dict

RESULTS = Path(__file__).parent / "results"
TRAIN, TEST, LENGTH = 2500, 1000, 48
TAILS = (0.0, 1e-4, 1e-3)
MARGIN = load_policy("margin")
Rows = list[dict[str, list[int]]]


def examples(data: Path, split: str, count: int) -> Examples:
    """Some rows of CLINC150."""
    path = data / "clinc150" / f"{split}.jsonl.gz"
    read = read_examples(str(path), Columns("sentence1", None, "label"), split=split, task="classification")
    return subsample(read, count)


@torch.inference_mode()
def features(model: MultiExitModel, rows: Rows) -> Tensor:
    """The mean of the tokens after each layer, (L, N, D)."""
    result = torch.empty(len(model.layers), len(rows), model.config.backbone.hidden_size)
    for numbers in length_sorted(rows, 32):
        carry = model.embed(collate([rows[number] for number in numbers], model.config.pad_token_id))
        for exit in range(len(model.layers)):
            carry = model.block(exit, carry)
            weights = carry.mask / carry.mask.sum(dim=1, keepdim=True)
            result[exit, numbers] = torch.einsum("bt,btd->bd", weights, carry.hidden)
    return result.clone()


def fit_exits(model: MultiExitModel, rows: Rows, labels: Tensor) -> None:
    """Fit every exit alone; the encoder stays as it is."""
    for classifier, values in zip(model.heads.classifiers, features(model, rows), strict=True):
        mean, spread = values.mean(dim=0), values.std(dim=0) + 1e-6
        inputs = (values - mean) / spread
        weight = torch.zeros_like(classifier.weight, requires_grad=True)
        bias = torch.zeros_like(classifier.bias, requires_grad=True)
        optimizer = torch.optim.LBFGS([weight, bias], max_iter=60, line_search_fn="strong_wolfe")

        def loss(inputs: Tensor = inputs, weight: Tensor = weight, bias: Tensor = bias) -> Tensor:
            weight.grad = bias.grad = None
            value = F.cross_entropy(inputs @ weight.T + bias, labels) + 2e-3 * weight.square().sum()
            value.backward()
            return value

        optimizer.step(loss)
        with torch.no_grad():
            classifier.weight.copy_(weight / spread)
            classifier.bias.copy_(bias - weight / spread @ mean)


def in_int8(model: MultiExitModel, rows: Rows, tail: float) -> OnnxEngine:
    """The int8 graph with ranges that leave out a tail."""
    activation_ranges.TAIL = tail
    ranges = activation_ranges.measure_ranges(model, rows)
    parts = with_steps(export_parts(model, "", "int8", exact_int8(ranges)), [MARGIN])
    return OnnxEngine(OnnxSession.load(assemble(parts, policy_to_dict(MARGIN)).SerializeToString()), model.config)


def measured(encoder: str, data: Path) -> dict[str, list[float]]:
    """Scores of all exits of an encoder, in torch and with each tail."""
    source = default_encoder() if encoder == "default" else encoder
    train, test = examples(data, "train", TRAIN), examples(data, "validation", TEST)
    names = dict(enumerate(train.label_names))
    model = MultiExitModel.from_backbone(source, id2label=names, pooling="mean").eval()
    tokenizer = load_tokenizer(source)
    rows, others = (encode(tokenizer, some.texts, LENGTH) for some in (train, test))
    fit_exits(model, rows, torch.tensor(train.labels))
    labels = torch.tensor(test.labels)

    def scores(engine: MultiExitModel | OnnxEngine) -> list[float]:
        answers = record(engine, others).logits.argmax(dim=-1)  # (L, N)
        return (answers == labels).double().mean(dim=1).tolist()

    in_8_bits = {f"int8, tail {tail:g}": scores(in_int8(model, rows, tail)) for tail in TAILS}
    return {"torch": scores(model), **in_8_bits}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--encoder", action="append", required=True, help='"default", a folder or a hub name')
    options = parser.parse_args()
    results = {Path(encoder).name: measured(encoder, options.data) for encoder in options.encoder}
    tables = [
        f"## {encoder}\n\n| | accuracy after each layer |\n|---|---|\n"
        + "\n".join(f"| {name} | {' '.join(f'{score:.3f}' for score in scores)} |" for name, scores in by.items())
        for encoder, by in results.items()
    ]
    about = provenance()
    title = f"# Ranges of activations in int8\n\nCLINC150, {TRAIN:,} rows fit the exits, {TEST:,} others are scored.\n"
    page = "\n\n".join([title + as_lines(about), *tables])
    (RESULTS / "int8_ranges.md").write_text(page + "\n")
    (RESULTS / "int8_ranges.json").write_text(json.dumps({"about": about, "results": results}, indent=2) + "\n")
    print(page)


if __name__ == "__main__":
    main()
