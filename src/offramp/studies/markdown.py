"""A study's page in Markdown: its result beside the figures that the paper printed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from offramp.policies.registry import policy_text
from offramp.studies.result import ExitAnalysis, SeedSummary, StudyResult
from offramp.studies.selection import FAR
from offramp.studies.spec import EXITS, PublishedResult, Study
from offramp.studies.training_runs import ExperimentSummary

TITLES = {
    "score": "score",
    "relative": "of the plain score",
    "saving": "layers saved",
    "speedup": "layers / mean exit",
    "mean_exit": "mean exit",
    "macs_ratio": "MACs ratio",
}
FORMATS = {
    "score": "{:.1f}",
    "relative": "{:.0f}%",
    "saving": "{:.0f}%",
    "speedup": "{:.2f}x",
    "mean_exit": "{:.2f}",
    "macs_ratio": "{:.2f}x",
    "average": "{:.1f}",
    "best": "{:.1f}",
}
RESULT_SCALES = {"score": 100, "relative": 100, "saving": 100}
"""Factors from a result's figures to those shown."""
PUBLISHED_SCALES = {"saving": 100}
"""Factors from printed figures (see `offramp.studies.spec.PublishedResult`) to those shown."""


def data_set_of(study: Study, source: str) -> str | None:
    """Find the paper's name for a file or data set among the words of its path; None = not in the paper."""
    words = source.lower().replace("-", "").replace("_", "").replace(":", "/").replace(".", "/").split("/")
    known = {row.data.replace("-", ""): row.data for row in study.published}
    return next((known[word] for word in reversed(words) if word in known), None)


def page(result: StudyResult, summary: ExperimentSummary, data: str | None) -> str:
    """Write the whole page.

    Args:
        result: of `run_study`.
        summary: how the models were trained.
        data: the paper's name for the data set; None = it is not in the paper.
    """
    study = result.study
    parts = [
        [
            f"# {study.name}: the paper's comparison on {summary.data.get('train', 'these rows')}, {summary.backbone}",
            "",
        ],
        [f"{study.source}.", "", *_setting(result, summary), ""],
        ["## The comparison", "", *_comparison(result, data), "", *_remarks(result, summary), ""],
        [f"## Ahead of {study.pace}, seed by seed", "", *_leads(result), ""] if result.leads else [],
        ["## Every exit", "", *_exits(result, data), ""],
        ["## What policies can be set to", "", *_reached(result), ""] if result.reached else [],
        ["## With a guarantee", "", *_certified(result), ""] if result.certified else [],
        _analyses(result),
        [] if data else ["## The paper's own figures", "", *printed_rows(study.published), ""],
    ]
    return "\n".join(line for part in parts for line in part)


def _setting(result: StudyResult, summary: ExperimentSummary) -> list[str]:
    recipe, seeds = summary.recipe, len(result.seeds)
    model = f"{summary.backbone}, {result.depth} layers, {summary.pooling} pooling"
    epochs = f"epochs {recipe['num_train_epochs']:g}, batches of {recipe['per_device_train_batch_size']}"
    truncation = f", texts cut to {summary.max_length} tokens" if summary.max_length else ""
    precision = ", bfloat16" if recipe["bf16"] else ""
    spread = f"Median of {seeds} seeds, with the lowest and the highest." if seeds > 1 else "One seed."
    return [
        f"{model}; trained on {summary.rows['train']} rows:",
        f"{epochs}, learning rate {recipe['learning_rate']:g}{precision}{truncation}.",
        f"{result.selection_rows} rows choose thresholds, {result.test_rows} others are reported.",
        f"Score: {' and '.join(result.metrics)}, times 100. {spread}",
    ]


def _comparison(result: StudyResult, data: str | None) -> list[str]:
    published, shows = result.study.published_on(data), result.study.shows
    rows = [(row, _columns(published, row.system, row.budget)) for row in result.rows]
    tables = [table for table in _tables(published) if any(table in columns for _, columns in rows)]
    head = ["system", "asked", *(TITLES[name] for name in shows), *map(", ".join, tables)]
    lines = [
        [row.system, row.budget, *(_spread(row, name) for name in shows), *(columns.get(t, "") for t in tables)]
        for row, columns in rows
    ]
    return _table(head, lines)


def _tables(published: Sequence[PublishedResult]) -> list[tuple[str, str]]:
    """Return table and backbone of printed rows, in their order, without repeats."""
    return list(dict.fromkeys((row.table, row.backbone) for row in published))


def _columns(published: Sequence[PublishedResult], system: str, budget: str) -> dict[tuple[str, str], str]:
    """Return the printed figures for a row of the result, by table and backbone; the first where several match."""
    matching = [row for row in published if (row.system, row.budget) == (system, budget)]
    return {(row.table, row.backbone): _figures(row) for row in reversed(matching)}


def _spread(row: SeedSummary, name: str) -> str:
    """Return the median with its range, and the number of seeds where some have no result."""
    count = sum(selected is not None for selected in row.selected)
    if not count or name not in row.median:
        return "none"
    low, middle, high = (_format(name, figures[name], RESULT_SCALES) for figures in (row.low, row.median, row.high))
    text = middle if low == high else f"{middle} ({low} to {high})"
    return text if count == len(row.selected) else f"{text}, {count} of {len(row.selected)} seeds"


def _format(name: str, value: float, scales: Mapping[str, float]) -> str:
    return FORMATS[name].format(value * scales.get(name, 1))


def _figures(row: PublishedResult) -> str:
    return " at ".join(_format(name, value, PUBLISHED_SCALES) for name, value in row.figures.items() if name in FORMATS)


def _remarks(result: StudyResult, summary: ExperimentSummary) -> list[str]:
    tests = "a test set" if "test" in summary.rows else "the other half of the validation rows"
    remarks = [f"Thresholds come from rows that are not reported; those reported are {tests}."]
    if any(None in row.selected for row in result.rows):
        remarks.append(
            f'"none": no threshold does what is asked on the rows that choose, or comes within {FAR:.1%} of the cost.'
        )
    return [f"- {remark}" for remark in (*remarks, *result.study.notes)]


def _leads(result: StudyResult) -> list[str]:
    budgets = list(dict.fromkeys(row.budget for row in result.leads))
    cells = {(row.system, row.budget): " ".join(f"{100 * lead:+.1f}" for lead in row.seeds) for row in result.leads}
    lines = [
        [system, *(cells.get((system, budget), "none") for budget in budgets)]
        for system in dict.fromkeys(row.system for row in result.leads)
    ]
    return [*_table(["system", *budgets], lines), "", "Points of the score, on the same rows; each at its own savings."]


def _exits(result: StudyResult, data: str | None) -> list[str]:
    published = [row for row in result.study.published_on(data) if row.budget == EXITS]
    tables = _tables(published)
    layers = max((row.layers for row in result.exits), key=len)
    layers = layers if len(layers) > 1 else sorted({layer for row in result.exits for layer in row.layers})
    head = ["training", *map(str, layers), "average", "best", *map(", ".join, tables)]
    lines = []
    for row in result.exits:
        scores = dict(zip(row.layers, row.scores, strict=True))
        shown = [f"{100 * scores[layer]:.1f}" if layer in scores else "" for layer in layers]
        columns = _columns(published, row.training, EXITS)
        averages = [f"{100 * row.average:.1f}", f"{100 * row.best:.1f}"]
        lines.append([row.training, *shown, *averages, *(columns.get(table, "") for table in tables)])
    return _table(head, lines)


def _reached(result: StudyResult) -> list[str]:
    head = ["system", "settings", "least mean exit", "most", "widest gap between settings"]
    lines = [
        [row.system, f"{row.settings:g}", *(f"{value:.2f}" for value in (row.least, row.most, row.widest_gap))]
        for row in result.reached
    ]
    return [*_table(head, lines), "", "In layers, on the rows that choose; all thresholds that differ count."]


def _certified(result: StudyResult) -> list[str]:
    first = result.certified[0]
    text = (
        f"Certified on the rows that choose: with {1 - first.delta:.0%} confidence at most {first.level:.0%} of "
        "the rows are answered wrong where the full model is right. No savings: too few rows for the promise."
    )
    head = ["system", "policy", "score", "layers saved", "lost on the rows reported"]
    lines = []
    for row in result.certified:
        if figures := row.median:
            shown = [_format(name, figures[name], RESULT_SCALES) for name in ("score", "saving")]
            lines.append([row.system, policy_text(row.policy), *shown, f"{figures['lost']:.1%}"])
    return [text, "", *_table(head, lines)]


def _analyses(result: StudyResult) -> list[str]:
    """Write overthinking, certainty and BLEU of the trainings that have them, on all validation rows."""
    lines: list[str] = []
    for title, text, lines_of in ANALYSES:
        cells = [[row.training, *line] for row in result.analyses for line in lines_of(row)]
        if cells:
            layers = [str(layer) for layer in range(1, max(map(len, cells)) - 1)]
            lines += [f"## {title}", "", text, "", *_table(["training", "exit", *layers], cells), ""]
    return lines


def _overthinking(row: ExitAnalysis) -> list[list[str]]:
    if row.entropy is None or row.error is None:
        return []
    errors = f"error ({row.became_wrong:.1%} right at an earlier exit, wrong at the last)"
    return [
        ["entropy", *(f"{value:.3f}" for value in row.entropy)],
        [errors, *(f"{100 * value:.1f}%" for value in row.error)],
    ]


def _certainty(row: ExitAnalysis) -> list[list[str]]:
    return _by_title(("least", "quarter", "median", "three quarters", "most"), row.certainty or ())


def _bleu(row: ExitAnalysis) -> list[list[str]]:
    return _by_title(("0", "1"), row.bleu or ())


def _by_title(titles: Sequence[str], values: Sequence[Sequence[float | None]]) -> list[list[str]]:
    """Return a line for each title of values (L, titles); a missing value is an empty cell."""
    columns = zip(*values, strict=True)
    return [
        [title, *("" if value is None else f"{value:.2f}" for value in column)]
        for title, column in zip(titles, columns, strict=False)
    ]


ANALYSES = (
    (
        "Overthinking",
        "Mean entropy in nats and error by exit (PABEE, figure 2b), on all validation rows.",
        _overthinking,
    ),
    ("Certainty", "Quartiles of the learned certainty by exit (BERxiT, figure 7).", _certainty),
    (
        "BLEU and confidence",
        "Correlation over the rows answered 0, and over those answered 1 (BERxiT, 5.5).",
        _bleu,
    ),
)


def printed_rows(published: Sequence[PublishedResult]) -> list[str]:
    """Write all figures of the paper, a table for each of its tables."""
    lines: list[str] = []
    for table, backbone in _tables(published):
        rows = [row for row in published if (row.table, row.backbone) == (table, backbone)]
        data = list(dict.fromkeys(row.data for row in rows))
        cells = {(row.system, row.budget, row.data): _figures(row) for row in rows}
        names = dict.fromkeys((row.system, row.budget) for row in rows)
        body = [[*name, *(cells.get((*name, column), "") for column in data)] for name in names]
        lines += [f"{table.capitalize()}, {backbone}:", "", *_table(["system", "asked", *data], body), ""]
    return lines[:-1]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]
