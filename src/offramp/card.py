"""The model card that is written beside the weights."""

from __future__ import annotations

from collections.abc import Mapping

from transformers import PreTrainedConfig

from offramp.values import OperatingPoint

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

## Operating points

{points}
"""


def model_card(config: PreTrainedConfig, points: Mapping[str, OperatingPoint]) -> str:
    """Markdown with the metadata that the hub reads."""
    labels = [config.id2label[number] for number in range(config.num_labels)]
    return CARD.format(
        family=config.backbone.model_type,
        depth=config.backbone.num_hidden_layers,
        layers=", ".join(map(str, config.exit_layers)),
        head=config.head,
        pooling=config.pooling,
        problem=config.problem_type.replace("_", " "),
        labels=", ".join(labels[:20]) + (f" and {len(labels) - 20} more" if len(labels) > 20 else ""),
        points=_table(points) if points else "None yet; `offramp calibrate` makes them.",
    )


def _table(points: Mapping[str, OperatingPoint]) -> str:
    rows = ["| name | policy | score | full model | mean exit | layers saved |", "|---|---|---|---|---|---|"]
    for name, point in points.items():
        told = point.measured
        if told is None:
            rows.append(f"| {name} | {point.policy['name']} | not measured | | | |")
            continue
        score, full = (
            f"{told.metric} {value:.4f}" if value is not None else "" for value in (told.score, told.full_score)
        )
        where = f"{told.mean_exit:.2f} of {told.depth} | {told.saving:.0%}"
        rows.append(f"| {name} | {point.policy['name']} | {score} | {full} | {where} |")
    return "\n".join(rows) + "\n\nMeasured on the data on which the thresholds were chosen."
