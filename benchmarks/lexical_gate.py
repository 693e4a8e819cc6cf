"""Fit BERxiT's gate onto the finished encoders of `lexical_models.py`, for policy `certainty` of `lexical_rules.py`.

    python benchmarks/lexical_gate.py --data ../shared/data

The paper trains the gate together with the encoder. Here encoder and exits stay as they are, and the one linear gate
that all exits share is fitted afterwards, on ROWS rows of training, by the paper's loss J (`offramp.model.gate`). So
its features are not made for it, which is a handicap that the page names. `traces/TASK-SEED-gate.safetensors` in the
runs is the certainty of the six exits on the rows that choose and report. What is there is skipped; seed 0 of every
task comes first. Half an hour on one core in all.
"""

from __future__ import annotations

import argparse

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lexical_models import Cell, add_options, cells, take
from offramp.data.batching import Tokens, collate, encode, length_sorted, token_limit
from offramp.data.examples import Examples
from offramp.inference.record import record
from offramp.model.gate import Gate
from offramp.model.hub import load_tokenizer
from offramp.model.losses import gate_losses
from offramp.model.modeling import MultiExitModel
from offramp.types.outputs import ExitOutput

ROWS, STEPS = 2000, 100
"""Of training that fit the gate; steps of the fit."""


def certainty_of(cell: Cell) -> Tensor:
    """Return the gate's certainty of the six exits, (6, N), on the rows that choose and report."""
    file = cell.file("gate")
    if not file.exists():
        save_file({"certainty": gated(cell)}, file)
    return load_file(file)["certainty"]


def gated(cell: Cell) -> Tensor:
    """Fit a gate on rows of training and return its certainty on the rows that choose and report, (6, N)."""
    model = MultiExitModel.from_backbone(str(cell.folder), pooling="mean", certainty=True).eval()
    assert model.gate is not None
    tokenizer = load_tokenizer(cell.folder)
    limit = token_limit(tokenizer, model.config.backbone)
    learn = cell.examples("train")
    learn = take(learn, list(range(min(ROWS, len(learn)))))
    states, logits = exit_inputs(model, encode(tokenizer, learn.texts, limit))
    fit(model.gate, states, logits, learn)
    certainty = record(model, rows_of(encode(tokenizer, cell.examples(cell.setting.split).texts, limit))).certainty
    assert certainty is not None
    return certainty


def rows_of(tokens: list[Tokens]) -> list[dict[str, list[int]]]:
    """Return tokens as rows of a data set."""
    return [dict(row) for row in tokens]


@torch.no_grad()
def exit_inputs(model: MultiExitModel, rows: list[Tokens]) -> tuple[Tensor, Tensor]:
    """Return what the gate reads at every exit, (L, N, W), and the exits' logits (L, N, C)."""
    read: list[Tensor] = []
    assert model.gate is not None
    hook = model.gate.register_forward_pre_hook(lambda gate, inputs: read.append(inputs[0]))
    states = torch.empty(len(model.config.exit_layers), len(rows), model.gate.linear.in_features)
    logits = torch.empty(*states.shape[:2], model.config.num_labels)
    for numbers in length_sorted(rows, 32):
        read.clear()
        logits[:, numbers] = model.all_exits(
            collate([rows[number] for number in numbers], model.config.pad_token_id)
        ).logits
        states[:, numbers] = torch.stack(read)
    hook.remove()
    return states, logits


def fit(gate: Gate, states: Tensor, logits: Tensor, learn: Examples) -> None:
    """Fit a gate in place: least mean J over exits and rows, with a little weight decay, by L-BFGS from zero."""
    labels = torch.tensor(learn.labels)
    torch.nn.init.zeros_(gate.linear.weight)
    torch.nn.init.zeros_(gate.linear.bias)
    optimizer = torch.optim.LBFGS(gate.parameters(), max_iter=STEPS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        certainty = torch.stack([gate(exit) for exit in states])  # (L, N)
        loss = gate_losses(ExitOutput(logits, certainty), labels).mean()
        loss = loss + gate.linear.weight.square().sum() / (2 * len(labels))
        loss.backward()
        return loss

    optimizer.step(closure)


def main() -> None:
    """Fit what is missing, cell by cell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    for cell in cells(parser.parse_args()):
        if cell.is_trained():
            certainty = certainty_of(cell)
            print(cell.task, cell.seed, [round(value, 3) for value in certainty.mean(dim=1).tolist()], flush=True)


if __name__ == "__main__":
    main()
