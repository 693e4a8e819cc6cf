"""Verdicts and the pages of the claims: `docs/claims.md`, and figures in the pages that quote it. Imports no torch."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULT, PAGE = ROOT / "benchmarks" / "results" / "claims.json", ROOT / "docs" / "claims.md"
QUOTING = (ROOT / "docs" / "authors.md", ROOT / "docs" / "what-to-use.md")
HOLDS, FAILS, OPEN = "holds", "does not hold", "cannot be said"
QUOTE = re.compile(r"\[([^\]]+)\]\(claims\.md#([a-z]+-\d+)\)")
Row = Mapping[str, Any]
PAPERS = {
    "pabee": 'PABEE: Zhou et al., "BERT Loses Patience", NeurIPS 2020',
    "berxit": 'BERxiT: Xin et al., "BERxiT: Early Exiting for BERT", EACL 2021',
    "pcee": 'PCEE-BERT: Zhang et al., "Patient and Confident Early Exiting", Findings of NAACL 2022',
    "mpee": 'MPEE: Kong et al., "Unified Multi-Perspective Early Exiting", COLING 2022',
    "badge": 'BADGE: Zhu et al., "Block-wise Bypasses and Divergence-Based Early Exiting", ACL 2023',
}


@dataclass(frozen=True)
class Rule:
    """When a claim holds: its whole interval lies there.

    Attributes:
        kind: "above", "below", "at least", "at most" a bound, or "within" the bound on both sides of 0.
        bound: in the unit of the figure.
    """

    kind: str
    bound: float = 0.0

    def verdict(self, low: float | None, high: float | None) -> str:
        """Return the verdict of an interval; None = there is none."""
        if low is None or high is None:
            return OPEN
        inside, outside = {
            "above": (low > self.bound, high < self.bound),
            "below": (high < self.bound, low > self.bound),
            "at least": (low >= self.bound, high < self.bound),
            "at most": (high <= self.bound, low > self.bound),
            "within": (-self.bound <= low and high <= self.bound, low > self.bound or high < -self.bound),
        }[self.kind]
        return HOLDS if inside else FAILS if outside else OPEN

    def text(self) -> str:
        """Return it in signs."""
        signs = {"above": "> ", "below": "< ", "at least": "≥ ", "at most": "≤ ", "within": "within ±"}
        return f"{signs[self.kind]}{number(self.bound, signed=False)}"


HIGHER, LOWER, COMPARABLE = Rule("above"), Rule("below"), Rule("within", 1.0)


def not_below(margin: float) -> Rule:
    """Return the rule of a claim that allows a loss up to a margin."""
    return Rule("at least", 0.0 - margin)


def number(value: float, *, signed: bool = True) -> str:
    """Return a figure as it is printed: with two digits behind the point, or without those that are 0."""
    return f"{value:+.2f}" if signed else f"{value:.2f}".rstrip("0").rstrip(".")


def figure(row: Row) -> str:
    """Return a row's point."""
    return number(row["value"], signed=row["unit"] == "points")


def with_interval(row: Row) -> str:
    """Return a row's point and interval; exact figures have no interval."""
    if row["low"] is None or row["low"] == row["high"] == row["value"]:
        return figure(row)
    signed = row["unit"] == "points"
    return f"{figure(row)} ({number(row['low'], signed=signed)} to {number(row['high'], signed=signed)})"


def verdict(row: Row) -> str:
    """Return a row's verdict: that of its interval if every seed has the same; of what was not run "cannot be said"."""
    rule = Rule(**row["rule"])
    verdicts = {rule.verdict(row["low"], row["high"]), *(rule.verdict(seed, seed) for seed in row["seeds"])}
    return verdicts.pop() if len(verdicts) == 1 else OPEN


def quotable(row: Row) -> set[str]:
    """Return what the text of a link to a row may be."""
    words = {verdict(row)}
    if row["value"] is not None:
        words |= {figure(row), with_interval(row), f"{figure(row)} {row['unit']}"}
    return words


def quotes(text: str) -> list[tuple[str, str]]:
    """Return the links of a page to the claims: text and name."""
    return [(" ".join(quote.split()), name) for quote, name in QUOTE.findall(text)]


def refreshed(text: str, rows: Mapping[str, Row]) -> str:
    """Return a page with the figures of its links as they are now; verdicts stay, a test finds those that changed."""

    def renew(link: re.Match[str]) -> str:
        old, row = " ".join(link[1].split()), rows[link[2]]
        if not re.search(r"\d", old) or row["value"] is None:
            return link[0]
        new = figure(row)
        if " (" in old:
            new = with_interval(row)
        elif old.endswith(row["unit"]):
            new += f" {row['unit']}"
        return f"[{new}](claims.md#{link[2]})"

    return QUOTE.sub(renew, text)


def page(made: Mapping[str, Any]) -> str:
    """Return `docs/claims.md`."""
    rows = made["rows"]
    parts = [HEAD.format(**made["setting"]), counts(rows)]
    for paper, title in PAPERS.items():
        own = [row for row in rows if row["paper"] == paper]
        parts += [f"## {title}", table(own), f"### How {title.partition(':')[0]}'s claims were compared"]
        parts += [note(row) for row in own]
    return "\n\n".join(parts) + "\n"


def counts(rows: Iterable[Row]) -> str:
    """Return the number of verdicts of each paper."""
    lines = ["| paper | claims | hold | do not hold | cannot be said | of these not run |", "|---|---|---|---|---|---|"]
    for paper, title in PAPERS.items():
        own = [row for row in rows if row["paper"] == paper]
        verdicts = [verdict(row) for row in own]
        absent = sum(row["value"] is None for row in own)
        figures = (len(own), *(verdicts.count(word) for word in (HOLDS, FAILS, OPEN)), absent)
        lines.append(f"| {title.partition(':')[0]} | {' | '.join(map(str, figures))} |")
    return "\n".join(lines)


def table(rows: Iterable[Row]) -> str:
    """Return a line for each claim."""
    lines = [
        "| no. | claim | in the paper | its figure | here (95 % interval) | tasks | holds if | verdict | source |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        here = "not run" if row["value"] is None else f"{with_interval(row)} {row['unit']}"
        source = f"`{row['command']}`, [{Path(row['file']).name}](../{row['file']})"
        name = f"[{row['name'].partition('-')[2]}](#{row['name']})"
        cells = (
            *(name, row["claim"], row["where"], row["printed"], here),
            str(len(row["tasks"]) or ""),
            *(Rule(**row["rule"]).text(), f"**{verdict(row)}**", source),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def note(row: Row) -> str:
    """Return what was compared for a claim, with its tasks and seeds."""
    sentences = [row["note"]] if row["note"] else []
    if row["tasks"]:
        by_task = ", ".join(f"{name} {with_interval(task)}" for name, task in row["tasks"].items())
        sentences.append(f"By task: {by_task}.")
    if len(row["seeds"]) > 1:
        sentences.append(f"By seed: {', '.join(number(value) for value in row['seeds'])}.")
    if row["left_out"]:
        sentences.append(f"Left out: {'; '.join(f'{name} ({why})' for name, why in row['left_out'].items())}.")
    return f"#### {row['name']}\n\n{' '.join(sentences) or 'As the table says.'}"


HEAD = """\
# Claims of the five papers

Each claim of the five papers that these models can test, in a line: the paper's figure, the figure here with its 95 %
interval, and a verdict by a rule that does not look at the figure. `python benchmarks/claims.py` writes this page from
[claims.json](../benchmarks/results/claims.json); {date}. What follows from it for the authors is in
[authors.md](authors.md), for users in [what-to-use.md](what-to-use.md).

**What these runs cannot show.**

- Other encoders and whole tasks: here are MiniLM (6 layers) and MPNet-base (12), trained for one epoch on at most 8,532
  rows (the traces of CLINC150, SST-2 and SNLI on 8,857 to 20,000, CLINC150 for two). RTE starts from encoders that were
  fine-tuned on SNLI, as its own rows leave them at chance.
- The papers' protocol: median of five seeds, a search over learning rates, checkpoints chosen on development rows, test
  servers. Here are three seeds (one for the traces of CLINC150, SST-2 and SNLI), one recipe a task, the last step.
- New seeds: intervals are over rows, for the models as they are. The spread over the seeds stands beside them.

**How a figure comes about.** One random half of the validation rows chooses all thresholds, the other half is scored,
{halves} times over. A figure is a difference of two systems in points (accuracy; MRPC mean of accuracy and F1, CoLA
Matthews, STS-B Pearson), on the same rows, with the same seeds. It is the plain mean over the tasks. Its interval is
the middle 95 % of {draws} resamples of the rows, with the thresholds as they were chosen. The verdict is *holds* if
the whole interval and the figure of every seed meet the condition of the column "holds if", *does not hold* if all of
them miss it, else *cannot be said*. A claim that cannot be said is not wrong: rows or seeds speak for both sides.
Where the column "tasks" says 1, a verdict is about that task. The margins, 1 point for "as good as" and the paper's
own loss elsewhere, were set before anything was compared. Rows that other scripts measured say in their notes what
their intervals are."""


def load() -> dict[str, Any]:
    """Read the result."""
    made: dict[str, Any] = json.loads(RESULT.read_text(encoding="utf-8"))
    return made


def write_pages(made: Mapping[str, Any]) -> list[str]:
    """Write the page and the figures of those that quote it; return quotes that are no longer true."""
    PAGE.write_text(page(made), encoding="utf-8")
    rows, untrue = {row["name"]: row for row in made["rows"]}, []
    for file in QUOTING:
        if file.exists():
            text = refreshed(file.read_text(encoding="utf-8"), rows)
            file.write_text(text, encoding="utf-8")
            wrong = [
                f"{file.name}: {name} is not {old!r}" for old, name in quotes(text) if old not in quotable(rows[name])
            ]
            untrue += wrong
    return untrue
