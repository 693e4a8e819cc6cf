"""The model card beside the weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from transformers import PreTrainedConfig

from offramp.types.operating_point import POINTS_FILE, OperatingPoint, label_thresholds_text, write_points
from offramp.types.whole_file import whole_file

CARD = """---
library_name: offramp
pipeline_tag: text-classification
tags:
- early-exit
- {family}
---

# A {family} encoder that answers early

{depth} layers, a classifier after layers {layers} (head `{head}`, pooling `{pooling}`, {problem}).

```python
import offramp

predictor = offramp.Predictor.load("path/to/this/folder")
predictor(["a text"])
```

With `import offramp`, `transformers.pipeline("text-classification", folder)` works as well, at full depth until
`model.set_operating_point(...)` is called.

Outputs: {labels}

"""
HEADING = "## Operating points\n"
LABEL_NOTE = "in the order of the outputs; `offramp.Predictor` takes them, a pipeline of transformers 0.5"


def model_card(config: PreTrainedConfig, points: Mapping[str, OperatingPoint]) -> str:
    """Return the card in Markdown, with the metadata that the hub reads."""
    labels = [config.id2label[number] for number in range(config.num_labels)]
    card = CARD.format(
        family=config.backbone.model_type,
        depth=config.backbone.num_hidden_layers,
        layers=", ".join(map(str, config.exit_layers)),
        head=config.head,
        pooling=config.pooling,
        problem=config.problem_type.replace("_", " "),
        labels=", ".join(labels[:20]) + (f" and {len(labels) - 20} more" if len(labels) > 20 else ""),
    )
    return card + _section(points)


def save_points(points: Mapping[str, OperatingPoint], folder: Path) -> None:
    """Write a model folder's operating points, and list them in its card if the card has their heading."""
    write_points(points, folder / POINTS_FILE)
    card = folder / "README.md"
    before, heading, after = card.read_text(encoding="utf-8").partition(HEADING) if card.exists() else ("", "", "")
    if heading:
        _, next_heading, remainder = after.partition("\n## ")
        with whole_file(card) as file:
            file.write(before + _section(points) + next_heading + remainder)


def _section(points: Mapping[str, OperatingPoint]) -> str:
    content = _table(points) if points else "None yet; `offramp calibrate` makes them."
    return f"{HEADING}\n{content}\n"


def _table(points: Mapping[str, OperatingPoint]) -> str:
    rows = ["| name | policy | score | full model | mean exit | layers saved |", "|---|---|---|---|---|---|"]
    for name, point in points.items():
        measured = point.measured
        if measured is None:
            rows.append(f"| {name} | {point.policy['name']} | not measured | | | |")
            continue
        score, full = (
            f"{measured.metric} {value:.4f}" if value is not None else ""
            for value in (measured.score, measured.full_score)
        )
        depth = f"{measured.mean_exit:.2f} of {measured.depth} | {measured.saving:.0%}"
        rows.append(f"| {name} | {point.policy['name']} | {score} | {full} | {depth} |")
    facts = [f"- {name}: {point.certificate.describe()}" for name, point in points.items() if point.certificate]
    for name, point in points.items():
        if point.label_thresholds:
            facts.append(f"- {name}: {label_thresholds_text(point.label_thresholds)} ({LABEL_NOTE})")
    note = "Measured on the data on which the thresholds were chosen."
    return "\n".join([*rows, "", note, *(["", *facts] if facts else [])])
