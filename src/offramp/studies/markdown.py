"""What a study found, as Markdown, beside what its paper printed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from offramp.policies.registry import policy_text
from offramp.studies.selection import FAR
from offramp.studies.spec import EXITS, PublishedResult, Study

TITLES = {
    "score": "score",
    "relative": "of the plain score",
    "saving": "layers saved",
    "speedup": "layers / mean exit",
    "mean_exit": "mean exit",
    "macs_ratio": "MACs ratio",
}
SHOWN = {
    "score": "{:.1f}",
    "relative": "{:.0f}%",
    "saving": "{:.0f}%",
    "speedup": "{:.2f}x",
    "mean_exit": "{:.2f}",
    "macs_ratio": "{:.2f}x",
    "average": "{:.1f}",
    "best": "{:.1f}",
}
OURS = {"score": 100, "relative": 100, "saving": 100}
"""What our figures are multiplied by to be shown."""
THEIRS = {"saving": 100}
"""The same for printed ones (see `offramp.studies.spec.PublishedResult`)."""


ANALYSES = (
    ("Overthinking", "entropy", "Mean entropy in nats and error by exit (PABEE, figure 2b), on all validation rows."),
    ("Certainty", "certainty", "Quartiles of the learned certainty by exit (BERxiT, figure 7)."),
    ("BLEU and confidence", "bleu", "Correlation over the rows answered 0, and over those answered 1 (BERxiT, 5.5)."),
)


def data_set_of(study: Study, source: str) -> str | None:
    """The paper's name for the data of a file or data set, found in the words of its path; None = not in the paper."""
    words = source.lower().replace("-", "").replace("_", "").replace(":", "/").replace(".", "/").split("/")
    known = {row.data.replace("-", ""): row.data for row in study.published}
    return next((known[word] for word in reversed(words) if word in known), None)


def page(study: Study, found: Mapping[str, Any], data: str | None) -> str:
    """The whole page.

    Args:
        study: what was compared.
        found: as `run_study` gives it, with what `ExperimentConfig.told` says under "setting".
        data: the paper's name for the data set; None = it is not in the paper.
    """
    parts = [
        [f"# {study.name}: the paper's comparison on {found['setting']['data'].get('train', 'these rows')}", ""],
        [f"{study.source}.", "", *_setting(found), ""],
        ["## The comparison", "", *_comparison(study, found, data), "", *_remarks(study, found), ""],
        [f"## Ahead of {study.pace}, seed by seed", "", *_ahead(study, found), ""] if found["ahead"] else [],
        ["## Every exit", "", *_exits(study, found, data), ""],
        ["## What policies can be set to", "", *_reached(found), ""] if found["reached"] else [],
        ["## With a guarantee", "", *_promises(found), ""] if found["promises"] else [],
        _analyses(found),
        [] if data else ["## The paper's own figures", "", *printed_rows(study.published), ""],
    ]
    return "\n".join(line for part in parts for line in part)


def _setting(found: Mapping[str, Any]) -> list[str]:
    setting, rows, seeds = found["setting"], found["setting"]["rows"], len(found["seeds"])
    recipe = setting["recipe"]
    where = f"{setting['backbone']}, {found['depth']} layers, {setting['pooling']} pooling"
    many = f"epochs {recipe['num_train_epochs']:g}, batches of {recipe['per_device_train_batch_size']}"
    cut = f", texts cut to {setting['max_length']} tokens" if setting["max_length"] else ""
    narrow = ", bfloat16" if recipe["bf16"] else ""
    spread = f"Median of {seeds} seeds, with the lowest and the highest." if seeds > 1 else "One seed."
    return [
        f"{where}; trained on {rows['train']} rows:",
        f"{many}, learning rate {recipe['learning_rate']:g}{narrow}{cut}.",
        f"{found['rows_that_choose']} rows choose thresholds, {found['rows_reported']} others are reported.",
        f"Score: {' and '.join(found['metrics'])}, times 100. {spread}",
    ]


def _comparison(study: Study, found: Mapping[str, Any], data: str | None) -> list[str]:
    theirs = study.published_on(data)
    places = tuple(dict.fromkeys((row.table, row.backbone) for row in theirs))
    places = tuple(place for place in places if any(_of(theirs, place, row) for row in found["rows"]))
    head = ["system", "asked", *(TITLES[name] for name in study.shows), *(", ".join(place) for place in places)]
    lines = []
    for row in found["rows"]:
        ours = [_spread(row, name) for name in study.shows]
        lines.append([row["system"], row["ask"], *ours, *(_of(theirs, place, row) or "" for place in places)])
    return _table(head, lines)


def _spread(row: Mapping[str, Any], name: str) -> str:
    """The median, and its range where there is one; how many seeds where some have none."""
    have = sum(reading is not None for reading in row["readings"])
    if not have or name not in row["middle"]:
        return "none"
    low, middle, high = (_shown(name, row[which][name], OURS) for which in ("low", "middle", "high"))
    text = middle if low == high else f"{middle} ({low} to {high})"
    return text if have == len(row["readings"]) else f"{text}, {have} of {len(row['readings'])} seeds"


def _shown(name: str, value: float, units: Mapping[str, float]) -> str:
    return SHOWN[name].format(value * units.get(name, 1))


def _of(theirs: Sequence[PublishedResult], place: tuple[str, str], row: Mapping[str, Any]) -> str:
    """What a table of the paper has for a row of ours."""
    for each in theirs:
        if (each.table, each.backbone, each.system, each.ask) == (*place, row["system"], row["ask"]):
            return _figures(each)
    return ""


def _figures(row: PublishedResult) -> str:
    return " at ".join(_shown(name, value, THEIRS) for name, value in row.figures.items() if name in SHOWN)


def _remarks(study: Study, found: Mapping[str, Any]) -> list[str]:
    tests = "a test set" if "test" in found["setting"]["rows"] else "the other half of the validation rows"
    usual = [f"Thresholds come from rows that are not reported; those reported are {tests}."]
    if any(None in row["readings"] for row in found["rows"]):
        usual.append(
            f'"none": no threshold does what is asked on the rows that choose, or comes within {FAR:.1%} of the cost.'
        )
    return [f"- {note}" for note in (*usual, *study.notes)]


def _ahead(study: Study, found: Mapping[str, Any]) -> list[str]:
    labels = list(dict.fromkeys(row["ask"] for row in found["ahead"]))
    cells = {
        (row["system"], row["ask"]): " ".join(f"{100 * each:+.1f}" for each in row["seeds"]) for row in found["ahead"]
    }
    lines = [
        [system, *(cells.get((system, label), "none") for label in labels)]
        for system in dict.fromkeys(row["system"] for row in found["ahead"])
    ]
    return [*_table(["system", *labels], lines), "", "Points of the score, on the same rows; each at its own savings."]


def _exits(study: Study, found: Mapping[str, Any], data: str | None) -> list[str]:
    theirs = [row for row in study.published_on(data) if row.ask == EXITS]
    places = tuple(dict.fromkeys((row.table, row.backbone) for row in theirs))
    layers = max((row["layers"] for row in found["exits"]), key=len)
    layers = layers if len(layers) > 1 else sorted({layer for row in found["exits"] for layer in row["layers"]})
    head = ["training", *map(str, layers), "average", "best", *(", ".join(place) for place in places)]
    lines = []
    for row in found["exits"]:
        scores = dict(zip(row["layers"], row["scores"], strict=True))
        shown = [f"{100 * scores[layer]:.1f}" if layer in scores else "" for layer in layers]
        printed = [_of(theirs, place, {"system": row["training"], "ask": EXITS}) for place in places]
        lines.append([row["training"], *shown, f"{100 * row['average']:.1f}", f"{100 * row['best']:.1f}", *printed])
    return _table(head, lines)


def _reached(found: Mapping[str, Any]) -> list[str]:
    head = ["system", "settings", "least mean exit", "most", "widest gap between settings"]
    lines = [
        [row["system"], f"{row['settings']:g}", *(f"{row[name]:.2f}" for name in ("least", "most", "widest_gap"))]
        for row in found["reached"]
    ]
    return [*_table(head, lines), "", "In layers, on the rows that choose; all thresholds that differ count."]


def _promises(found: Mapping[str, Any]) -> list[str]:
    first = found["promises"][0]
    words = (
        f"Certified on the rows that choose: with {1 - first['delta']:.0%} confidence at most {first['level']:.0%} of "
        "the rows are answered wrong where the full model is right. No savings: too few rows for the promise."
    )
    head = ["system", "policy", "score", "layers saved", "lost on the rows reported"]
    lines = []
    for row in found["promises"]:
        if told := row["middle"]:
            shown = [_shown(name, told[name], OURS) for name in ("score", "saving")]
            lines.append([row["system"], policy_text(row["policy"]), *shown, f"{told['lost']:.1%}"])
    return [words, "", *_table(head, lines)]


def _analyses(found: Mapping[str, Any]) -> list[str]:
    """Overthinking, certainty and BLEU, of the trainings that have them; on all validation rows."""
    lines: list[str] = []
    for title, name, words in ANALYSES:
        rows = [row for row in found["analyses"] if name in row]
        if rows:
            layers = [str(layer) for layer in range(1, max(len(row[name]) for row in rows) + 1)]
            cells = [[row["training"], line, *shown] for row in rows for line, shown in _lines(name, row)]
            lines += [f"## {title}", "", words, "", *_table(["training", "exit", *layers], cells), ""]
    return lines


def _lines(name: str, row: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    if name == "entropy":
        spoilt = f"error ({row['spoilt']:.1%} right at an earlier exit, wrong at the last)"
        errors = [f"{100 * error:.1f}%" for error in row["error"]]
        return [("entropy", [f"{value:.3f}" for value in row["entropy"]]), (spoilt, errors)]
    titles = ("least", "quarter", "median", "three quarters", "most") if name == "certainty" else ("0", "1")
    columns = zip(*row[name], strict=True)
    return [
        (title, ["" if value is None else f"{value:.2f}" for value in column])
        for title, column in zip(titles, columns, strict=True)
    ]


def printed_rows(rows: Sequence[PublishedResult]) -> list[str]:
    """Everything that the paper printed, a table for each of its tables."""
    lines: list[str] = []
    for place in dict.fromkeys((row.table, row.backbone) for row in rows):
        here = [row for row in rows if (row.table, row.backbone) == place]
        data = list(dict.fromkeys(row.data for row in here))
        cells = {(row.system, row.ask, row.data): _figures(row) for row in here}
        names = dict.fromkeys((row.system, row.ask) for row in here)
        body = [[*name, *(cells.get((*name, each), "") for each in data)] for name in names]
        lines += [f"{place[0].capitalize()}, {place[1]}:", "", *_table(["system", "asked", *data], body), ""]
    return lines[:-1]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]
