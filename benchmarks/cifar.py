"""CIFAR-10: ResNet-56 with an exit after every two convolutions, as in PABEE's table 6 and PCEE-BERT's table 3.

    OMP_NUM_THREADS=1 python benchmarks/cifar.py --data ../shared/data/cifar10

Trains (`weighted` objective, SGD; resumes after a kill; `runs/cifar/progress.json` grows with every epoch), records
traces of the validation and the test images, and writes `benchmarks/results/cifar.json` and `cifar.md`. Thresholds,
and PCEE's patience, are chosen on the 5,000 validation images and reported on the 10,000 test images. Needs Pillow. On
one core an epoch takes about five minutes; what is done already is not done again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow.parquet
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import Dataset
from transformers import TrainerCallback, TrainerState, TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint

from machine import as_lines, provenance
from offramp.calibration.calibrate import calibrate
from offramp.data.batching import collate
from offramp.errors import CannotReach
from offramp.evaluation.measure import measure
from offramp.evaluation.metrics import layerwise
from offramp.inference.record import record
from offramp.model.backbones.resnet import CifarResNetConfig
from offramp.model.config import MultiExitConfig
from offramp.model.modeling import MultiExitModel
from offramp.policies.base import Policy
from offramp.policies.registry import load_policy
from offramp.training.trainer import ExitTrainer
from offramp.types.operating_point import Target
from offramp.types.trace import Trace

RESULTS = Path(__file__).parent / "results"
BATCH, LEARNING_RATE, MOMENTUM, DECAY, WARM_UP = 128, 0.1, 0.9, 1e-4, 0.05
SAVINGS = (0.75, 0.5, 0.25)
METHODS: dict[str, list[Policy]] = {  # the candidates among which the validation images choose
    "BranchyNet (entropy)": [load_policy("entropy")],
    "Shallow-Deep (max-prob)": [load_policy("max-prob")],
    "PABEE (patience)": [load_policy("patience")],
    "PCEE-BERT (pcee)": [load_policy("pcee", patience=patience) for patience in (2, 3, 6)],
}
PCEE_TABLE_3 = [  # method, layers saved, accuracy: the paper's own, on CIFAR-10
    ("ResNet-56", "0 %", "91.8"),
    ("PABEE", "77 %", "78.3"),
    ("PABEE", "52 %", "86.7"),
    ("PABEE", "26 %", "91.9"),
    ("PCEE-BERT", "76 %", "81.2"),
    ("PCEE-BERT", "51 %", "87.3"),
    ("PCEE-BERT", "25 %", "92.1"),
]
PABEE_TABLE_6 = [  # method, speed-up, accuracy: the paper's own, on CIFAR-10, median of 5 runs
    ("ResNet-56", "1.00x", "91.8"),
    ("BranchyNet", "1.33x", "91.4"),
    ("Shallow-Deep", "1.35x", "91.6"),
    ("PABEE", "1.26x", "92.0"),
]


def decoded(data: Path, split: str, runs: Path) -> tuple[Tensor, Tensor]:
    """Images (N, 3, 32, 32) as bytes, and labels (N,); decoded once."""
    cache = runs / f"{split}.images.safetensors"
    if not cache.exists():
        table = pyarrow.parquet.read_table(data / f"{split}.parquet").to_pydict()
        pictures = [Image.open(BytesIO(image["bytes"])).convert("RGB") for image in table["image"]]
        flat = torch.stack([torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8) for picture in pictures])
        images = flat.view(-1, 32, 32, 3).permute(0, 3, 1, 2).contiguous()
        save_file({"images": images, "labels": torch.tensor(table["label"])}, cache)
    found = load_file(cache)
    return found["images"], found["labels"]


class Images(Dataset[dict[str, Any]]):
    """Images as rows: `pixel_values` (3, 32, 32), mean 0 and deviation 1 for each channel of the training images."""

    def __init__(self, images: Tensor, labels: Tensor, mean: Tensor, deviation: Tensor) -> None:
        self.images, self.labels = images, labels.tolist()
        self.mean, self.deviation = mean.view(3, 1, 1), deviation.view(3, 1, 1)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, number: int) -> dict[str, Any]:
        pixels = (self.images[number].float() - self.mean) / self.deviation
        return {"pixel_values": pixels, "labels": self.labels[number]}


def read(data: Path, runs: Path) -> dict[str, Images]:
    """The three splits, all scaled by the training images."""
    splits = {split: decoded(data, split, runs) for split in ("train", "validation", "test")}
    channels = splits["train"][0].float().transpose(0, 1).flatten(1)  # (3, N * 32 * 32)
    scale = channels.mean(dim=1), channels.std(dim=1)
    return {split: Images(images, labels, *scale) for split, (images, labels) in splits.items()}


def shifted_and_flipped(rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """A training batch: 4 pixels of padding, a random crop of the old size, every other image in the mirror."""
    batch = collate(rows, None)
    images = F.pad(batch["pixel_values"], (4, 4, 4, 4))
    count, size = len(images), images.shape[-1] - 8
    down, right = torch.randint(0, 9, (2, count, 1)) + torch.arange(size)  # (B, 32) each
    right = torch.where(torch.rand(count, 1) < 0.5, right.flip(1), right)
    sample, channel = torch.arange(count).view(-1, 1, 1, 1), torch.arange(3).view(1, -1, 1, 1)
    batch["pixel_values"] = images[sample, channel, down[:, None, :, None], right[:, None, None, :]]
    return batch


class Progress(TrainerCallback):
    """After every epoch: the accuracy of every exit on the validation images, into a JSON file."""

    def __init__(self, model: MultiExitModel, rows: Images, file: Path) -> None:
        self.model, self.rows, self.file = model, rows, file
        self.started = time.monotonic()

    def on_epoch_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """See `transformers.TrainerCallback`."""
        figures = json.loads(self.file.read_text()) if self.file.exists() else []
        figures = [entry for entry in figures if entry["step"] < state.global_step]  # later ones run again
        losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
        accuracy = layerwise(record(self.model, self.rows, batch_size=250))
        figures.append(
            {
                "epoch": round(state.epoch or 0),
                "step": state.global_step,
                "seconds_since_start_or_resumption": round(time.monotonic() - self.started),
                "training_loss": losses[-1] if losses else None,
                "validation_accuracy": [round(value, 4) for value in accuracy],
            }
        )
        self.file.write_text(json.dumps(figures, indent=1) + "\n")


def optimizer_of(model: MultiExitModel) -> torch.optim.SGD:
    """Plain SGD for the backbone; each classifier moves as if its own loss had the weight 1.

    The objective gives exit i the weight i / sum(1..L), so that the first exit's classifier would learn 378 times as
    slowly as one that is alone. For the backbone the weights stay as they are.
    """
    groups: list[dict[str, Any]] = [{"params": list(model.backbone.parameters()), "weight_decay": DECAY}]
    total = sum(range(1, len(model.layers) + 1))
    for number, classifier in enumerate(model.heads.classifiers, start=1):
        weight = number / total
        group = {"params": list(classifier.parameters()), "lr": LEARNING_RATE / weight, "weight_decay": DECAY * weight}
        groups.append(group)
    return torch.optim.SGD(groups, LEARNING_RATE, MOMENTUM)


def train(splits: dict[str, Images], runs: Path, epochs: int, seed: int) -> Path:
    """Train the network, or go on where a run was stopped; the folder with its weights."""
    folder = runs / "model"
    if (folder / "model.safetensors").exists():
        return folder
    set_seed(seed)
    labels = json.loads((runs / "labels.json").read_text())
    config = MultiExitConfig(CifarResNetConfig(), exit_dropout=0.0, id2label=dict(enumerate(labels)))
    model = MultiExitModel(config).to(memory_format=torch.channels_last)
    arguments = TrainingArguments(
        str(runs / "checkpoints"),
        num_train_epochs=epochs,
        per_device_train_batch_size=BATCH,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="cosine",
        warmup_steps=WARM_UP,
        bf16=True,
        use_cpu=True,
        seed=seed,
        max_grad_norm=0.0,
        save_steps=200,
        save_total_limit=2,
        logging_steps=50,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    trainer = ExitTrainer(
        model,
        arguments,
        train_dataset=splits["train"],
        data_collator=shifted_and_flipped,
        optimizers=(optimizer_of(model), None),
        callbacks=[Progress(model, splits["validation"], runs / "progress.json")],
    )
    checkpoints = Path(arguments.output_dir)
    last = get_last_checkpoint(checkpoints) if checkpoints.exists() else None
    trainer.train(resume_from_checkpoint=last)
    model.eval().save_pretrained(folder)
    return folder


def traces(folder: Path, splits: dict[str, Images], runs: Path) -> dict[str, Trace]:
    """What every exit says of the validation and the test images, recorded once."""
    found = {}
    for split in ("validation", "test"):
        file = runs / f"{split}.trace.safetensors"
        if not file.exists():
            record(MultiExitModel.from_pretrained(folder), splits[split], batch_size=250).save(file)
        found[split] = Trace.load(file)
    return found


def figures_of(
    chosen_on: Trace, reported_on: Trace, candidates: Sequence[Policy], target: Target
) -> dict[str, Any] | None:
    """The candidate that does best on one trace where it meets the target, measured on the other; None if none can."""
    points = []
    for policy in candidates:
        with suppress(CannotReach):
            points.append(calibrate(chosen_on, policy, target))
    if not points:
        return None
    by_saving = target.max_drop is not None
    point = max(points, key=lambda point: point.measured.saving if by_saving else point.measured.score)
    figures = measure(reported_on, point.policy, point.thresholds)
    return {
        "policy": dict(point.policy),
        "threshold": point.thresholds[0],
        "saving": figures.saving,
        "speedup": figures.speedup,
        "accuracy": figures.score,
        "chosen_with_saving": point.measured.saving,
        "chosen_with_accuracy": point.measured.score,
    }


def results(found: dict[str, Trace], epochs: int, seed: int, runs: Path) -> dict[str, Any]:
    """Everything that the page tells."""
    chosen_on, reported_on = found["validation"], found["test"]
    steps = [step / 20 for step in range(1, 17)]
    figures = {
        "about": provenance(),
        "epochs": epochs,
        "seed": seed,
        "training": json.loads((runs / "progress.json").read_text()),
        "layerwise": {split: layerwise(trace) for split, trace in found.items()},
    }
    for name, policies in METHODS.items():
        figures.setdefault("savings", {})[name] = [
            figures_of(chosen_on, reported_on, policies, Target(speedup=1 / (1 - saving))) for saving in SAVINGS
        ]
        figures.setdefault("nothing_lost", {})[name] = figures_of(chosen_on, reported_on, policies, Target(max_drop=0))
        figures.setdefault("curves", {})[name] = [
            figures_of(chosen_on, reported_on, policies, Target(speedup=1 / (1 - saving))) for saving in steps
        ]
    return figures


def page(figures: dict[str, Any]) -> str:
    """The results as Markdown."""
    full = figures["layerwise"]["test"][-1]
    exits = figures["layerwise"]["test"]
    lines = [
        "# CIFAR-10, ResNet-56 with 27 exits",
        "",
        f"`weighted` objective, {figures['epochs']} epochs over the 45,000 training images, "
        f"seed {figures['seed']}; SGD with",
        f"momentum {MOMENTUM}, batch {BATCH}, learning rate {LEARNING_RATE} falling as a cosine, weight decay {DECAY};",
        "each classifier's rate is such that it learns as if alone; bfloat16 in training, float32 in these figures.",
        "Thresholds, and `pcee`'s patience, were chosen on the 5,000 validation images; all figures are those of the",
        "10,000 test images.",
        as_lines(figures["about"]),
        "",
        "**Read with care.** One run of few epochs on a processor, where the papers train to the end and PABEE takes",
        "the median of five; the images went through JPEG at a low quality, so that no accuracy here can be compared",
        "with a published one. What can be compared is the order of the methods and what each loses at a saving. The",
        "baseline is the last exit of the network that was trained with all its exits, not a plain ResNet-56, and all",
        "methods share that one network.",
        "",
        "**What it says.** Of four policies on one network the largest probability keeps most where half and where",
        "three quarters of the layers are saved; PCEE's patience around entropy gains nothing over entropy alone, and",
        "is no better than PABEE's patience at a half. That is not the papers' order. With a quarter saved all but",
        "patience lose next to nothing, as in the papers; patience finds none but full depth that loses nothing.",
        "",
        "## Accuracy of every exit",
        "",
        "| exit | accuracy | exit | accuracy | exit | accuracy |",
        "|---|---|---|---|---|---|",
    ]
    for row in range(9):
        cells = [f"{exit + 1} | {100 * exits[exit]:.1f}" for exit in (row, row + 9, row + 18)]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "## In the form of PCEE-BERT's table 3",
        "",
        "A block is a layer (two convolutions; all cost about the same). The threshold is the strictest that saves a",
        "quarter, a half, three quarters on the validation images.",
        "",
        "| method | layers saved | accuracy | of the last exit's |",
        "|---|---|---|---|",
        f"| last exit | 0 % | {100 * full:.1f} | 100.0 % |",
    ]
    for name, rows in figures["savings"].items():
        for row in filter(None, rows):
            setting = f", patience {row['policy']['patience']}" if row["policy"]["name"] == "pcee" else ""
            cells = f"{row['saving']:.0%} | {100 * row['accuracy']:.1f} | {row['accuracy'] / full:.1%}"
            lines.append(f"| {name}{setting} | {cells} |".replace("%", " %"))
    lines += ["", "The paper's own rows (CIFAR-10):", "", "| method | layers saved | accuracy |", "|---|---|---|"]
    lines += [f"| {' | '.join(row)} |" for row in PCEE_TABLE_3]
    lines += [
        "",
        "## In the form of PABEE's table 6",
        "",
        "The loosest threshold that, with all stricter ones, loses nothing on the validation images.",
        "",
        "| method | speed-up (layers) | accuracy |",
        "|---|---|---|",
        f"| last exit | 1.00x | {100 * full:.1f} |",
    ]
    for name, row in figures["nothing_lost"].items():
        lines.append(f"| {name} | {row['speedup']:.2f}x | {100 * row['accuracy']:.1f} |")
    lines += ["", "The paper's own rows (CIFAR-10):", "", "| method | speed-up | accuracy |", "|---|---|---|"]
    lines += [f"| {' | '.join(row)} |" for row in PABEE_TABLE_6]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Train, record, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/cifar10"))
    parser.add_argument("--runs", type=Path, default=Path("runs/cifar"), help="where images, weights and traces go")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.runs.mkdir(parents=True, exist_ok=True)
    (options.runs / "labels.json").write_text((options.data / "labels.json").read_text())
    splits = read(options.data, options.runs)
    folder = train(splits, options.runs, options.epochs, options.seed)
    found = results(traces(folder, splits, options.runs), options.epochs, options.seed, options.runs)
    (RESULTS / "cifar.json").write_text(json.dumps(found, indent=2) + "\n")
    (RESULTS / "cifar.md").write_text(page(found))
    print(page(found))


if __name__ == "__main__":
    main()
