"""The model card beside the weights."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedConfig

from offramp.errors import InvalidInput
from offramp.types.exit_names import LEXICAL, layers_text
from offramp.types.model_content import ModelContent
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

{depth} layers, {exits} (head `{head}`, pooling `{pooling}`, {problem}).{lexical}

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
FACTS = (
    r"^# An? .* encoder that answers early$",
    r"^\d+ layers, (?:a classifier after layers|exits at layers) .*$",
    r"^Outputs: .*$",
)
"""Lines of a card that are written anew with the model."""
LABEL_NOTE = "in the order of the outputs; `offramp.Predictor` takes them, a pipeline of transformers 0.5"


def model_card(config: PreTrainedConfig, points: Mapping[str, OperatingPoint]) -> str:
    """Return the card in Markdown, with the metadata that the hub reads."""
    labels = [config.id2label[number] for number in range(config.num_labels)]
    card = CARD.format(
        family=config.backbone.model_type,
        depth=config.backbone.num_hidden_layers,
        exits=("a classifier after layers " if config.lexical is None else "exits at layers ")
        + layers_text(config.layers),
        lexical=""
        if config.lexical is None
        else f" Layer 0 is the lexical exit: {LEXICAL}; it costs far less than a layer.",
        head=config.head,
        pooling=config.pooling,
        problem=config.problem_type.replace("_", " "),
        labels=", ".join(labels[:20]) + (f" and {len(labels) - 20} more" if len(labels) > 20 else ""),
    )
    return card + _section(points, config.layers)


def save_points(points: Mapping[str, OperatingPoint], folder: Path) -> None:
    """Write a model folder's operating points, and list them in its card if the card has their heading.

    The file ties each point to the model in the folder, unless the point is tied to one already.
    """
    content = ModelContent(folder)
    write_points({name: _tied(point, content) for name, point in points.items()}, folder / POINTS_FILE)
    write_card(folder, points)


def _tied(point: OperatingPoint, content: ModelContent) -> OperatingPoint:
    """Return a point with a whole fingerprint."""
    before = point.fingerprint
    if before is not None and before.content is not None:
        return point
    read = before.exit_layers if before is not None else _layers_read(point, content.layers or [])
    return replace(point, fingerprint=content.fingerprint(read))


def read_card(card: Path) -> str | None:
    """Return the text of a card; None if there is none, or one that is not UTF-8, which is somebody's own."""
    try:
        return card.read_text(encoding="utf-8") if card.exists() else None
    except UnicodeDecodeError:
        return None


def write_card(folder: Path, points: Mapping[str, OperatingPoint], config: PreTrainedConfig | None = None) -> None:
    """Make a folder's card true: its operating points, and with `config` its exits and outputs.

    A card without the heading of the operating points is somebody's own, and stays as it is. With `config` a missing
    card is written.
    """
    card = folder / "README.md"
    text, new = read_card(card), None
    if text is not None:
        new = true_card(text, points, ModelContent(folder).layers or [] if config is None else config.layers, config)
    elif config is not None and not card.exists():
        new = model_card(config, points)
    if new not in (None, text):
        with whole_file(card) as file:
            file.write(str(new))


def true_card(
    text: str, points: Mapping[str, OperatingPoint], layers: Sequence[int], config: PreTrainedConfig | None = None
) -> str:
    """Return a card with these points of exits at `layers`, and with `config` its facts; the other text stays."""
    before, heading, after = text.partition(HEADING)
    if not heading:
        return text
    _, next_heading, remainder = after.partition("\n## ")
    for line in () if config is None else model_card(config, {}).splitlines():
        before = _with_fact(before, line)
    return before + _section(points, layers) + next_heading + remainder


def add_to_card(folder: Path, points: Mapping[str, OperatingPoint], config: PreTrainedConfig) -> None:
    """Add exits, outputs and operating points to a card that transformers' Trainer wrote."""
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8").replace("library_name: transformers", "library_name: offramp", 1)
    _, _, own = model_card(config, points).split("---\n", 2)
    with whole_file(card) as file:
        file.write(f"{text.rstrip()}\n{own}")


def _with_fact(text: str, line: str) -> str:
    """Return a text with this line in place of the one of its kind, if it is one of FACTS."""
    pattern = next((pattern for pattern in FACTS if re.match(pattern, line)), None)
    return text if pattern is None else re.sub(pattern, lambda _: line, text, count=1, flags=re.MULTILINE)


def _section(points: Mapping[str, OperatingPoint], layers: Sequence[int]) -> str:
    content = _table(points, layers) if points else "None yet; `offramp calibrate` makes them."
    return f"{HEADING}\n{content}\n"


def _layers_read(point: OperatingPoint, layers: Sequence[int]) -> tuple[int, ...] | None:
    """Return the layers of the exits that a point reads; None for a point or a folder without them."""
    try:
        return point.layers_read(layers) if layers else None
    except InvalidInput:
        return None


def _table(points: Mapping[str, OperatingPoint], layers: Sequence[int]) -> str:
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
    read = {name: _layers_read(point, layers) for name, point in points.items()}
    skipping = {name: exits for name, exits in read.items() if exits is not None and exits != tuple(layers)}
    facts = [f"- {name}: reads the exits at layers {layers_text(exits)} alone" for name, exits in skipping.items()]
    facts += [f"- {name}: {point.certificate.describe()}" for name, point in points.items() if point.certificate]
    facts += [f"- {name}: {point.agreement.describe()}" for name, point in points.items() if point.agreement]
    for name, point in points.items():
        if point.label_thresholds:
            facts.append(f"- {name}: {label_thresholds_text(point.label_thresholds)} ({LABEL_NOTE})")
    note = "Measured on the data on which the thresholds were chosen."
    return "\n".join([*rows, "", note, *(["", *facts] if facts else [])])
