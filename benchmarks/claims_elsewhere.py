"""The papers' claims that other scripts measured, with their figures as they stand in those results."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from claims_page import COMPARABLE, HIGHER, Rule, verdict

RESULTS = Path(__file__).parent / "results"
Figures = dict[str, Any]
ABSENT: Figures = {"value": None, "low": None, "high": None}


def figures(value: float, low: float, high: float) -> Figures:
    """Return a point and its interval with two digits."""
    return dict(zip(("value", "low", "high"), (round(each, 2) + 0.0 for each in (value, low, high)), strict=True))


def result(name: str) -> Any:
    """Read a result; None where it is not there."""
    file = RESULTS / name
    return json.loads(file.read_text()) if file.exists() else None


def row(
    name: str,
    text: str,
    where: str,
    printed: str,
    rule: Rule,
    found: Figures,
    script: str,
    file: str,
    note: str = "",
    unit: str = "points",
) -> Figures:
    """Return a claim's line."""
    made = {
        "name": name,
        "paper": name.partition("-")[0],
        "claim": text,
        "where": where,
        "printed": printed,
        "rule": asdict(rule),
        "unit": unit,
        "seeds": [],
        "tasks": {},
        "left_out": {},
        "note": note,
        "command": f"python benchmarks/{script}",
        "file": f"benchmarks/results/{file}",
        **found,
    }
    return {**made, "verdict": verdict(made)}


def theorem() -> list[Figures]:
    """PABEE's theorem and its premise."""
    made = result("theorem.json")
    broken = sum(made["coverage"]["broken_promises"].values())
    example = {case["patience"]: case for case in made["paper_example"] if case["shared"] == 0.0}
    gains = [100 * (0.1 - example[patience]["exact"]["error"]) for patience in (4, 5, 6, 7)]
    share = min(made["break_even_share"][str(patience)] for patience in (4, 5, 6, 7))
    return [
        row(
            "pabee-12",
            "Theorem 1: where its inequality holds, patience makes fewer errors, if the exits err independently.",
            "3.4, appendix B",
            "proof",
            Rule("at most"),
            figures(broken, broken, broken),
            "theorem.py",
            "theorem.json",
            f"Exact probabilities in {made['coverage']['settings']:,} settings; the figure counts broken promises. The "
            "theorem's text and the head and end of its proof print three different right sides; none is "
            "broken. Not an estimate, so there is no interval.",
            "broken",
        ),
        row(
            "pabee-13",
            "Its example: with 12 exits, q = 0.2 and p = 0.1, a patience of 4 or more pays.",
            "3.4",
            "t ≥ 4",
            HIGHER,
            figures(min(gains), min(gains), min(gains)),
            "theorem.py",
            "theorem.json",
            "The least gain of patience 4 to 7, exact, for independent errors. Once "
            f"{100 * share:.0f} % of the samples have the same errors at all exits, patience 7 gains nothing.",
        ),
    ]


def attack() -> list[Figures]:
    """PABEE's robustness."""
    made = result("attack.json")["tasks"]
    rows = []
    for number, task, printed in ((14, "snli", "19.3 against 5.5 (SNLI)"), (15, "ag", "18.1 against 7.3 (Yelp)")):
        found = made[task]["fool"]
        point, low, high = (100 * value for value in found["patience"]["less_full"])
        names = {"snli": "inference (SNLI)", "ag": "topics (AG News, where the paper has Yelp)"}
        rows.append(
            row(
                f"pabee-{number}",
                f"After an attack by synonyms it keeps a higher accuracy than the full model, on {names[task]}.",
                "4.6, table 5",
                printed,
                HIGHER,
                figures(point, low, high),
                "attack.py",
                "attack.json",
                f"Accuracy after attack, patience less full depth of the same network, {made[task]['rows']} rows, one "
                "model. Texts must keep a cosine of 0.8 in this encoder's own space, so figures do not compare with "
                "TextFooler's.",
            )
        )
    return rows


def training_time() -> list[Figures]:
    """The cost of training with exits."""
    made = result("training_cost.json")["BERT-base, mean, float32"]
    return [
        row(
            "pabee-16",
            "Training with exits is no slower than plain fine-tuning.",
            "4.4, table 3",
            "242 against 247, 120 against 121 minutes (BERT)",
            Rule("at most", 1.05),
            figures(made["exits"]["ratio"], made["exits"]["ratio_low"], made["exits"]["ratio_high"]),
            "training_cost.py",
            "training_cost.json",
            "Time of a step with exits over one without, BERT-base, 9 rounds; the interval is their range. The paper "
            "counts minutes up to the best checkpoint, which also depends on when that comes.",
            "times",
        ),
        row(
            "badge-17",
            "Bypasses do not slow training down.",
            "3.1 (few parameters)",
            "not printed",
            Rule("at most", 1.05),
            figures(*(made["every feature"][key] for key in ("ratio", "ratio_low", "ratio_high"))),
            "training_cost.py",
            "training_cost.json",
            "The step has every feature, not only bypasses: gate, exit memory, distillation. BERT-base, 9 rounds.",
            "times",
        ),
    ]


def unpaired(one: float, other: float, rows: int) -> Figures:
    """Return the difference of two accuracies in points, as if their rows differed: wider than a paired one."""
    spread = 1.96 * math.sqrt((one * (1 - one) + other * (1 - other)) / rows)
    return figures(*(100 * (one - other + side * spread) for side in (0, -1, 1)))


def images() -> list[Figures]:
    """ResNet-56 on CIFAR-10."""
    made = result("cifar.json")
    last, rows = made["layerwise"]["test"][-1], 10_000
    note = "One run of 10 epochs on 10,000 images; the interval takes the rows for different ones, so it is too wide. "
    by_share = {name: made["savings"][name] for name in made["savings"]}
    patience, pcee = by_share["PABEE (patience)"], by_share["PCEE-BERT (pcee)"]
    paper = ("81.2 against 78.3", "87.3 against 86.7", "92.1 against 91.9")
    words = ("three quarters", "half", "a quarter")
    lines = [
        row(
            "pabee-17",
            "On images, too: with a quarter of the layers saved it beats the full ResNet-56 (CIFAR-10).",
            "appendix A, table 6",
            "+0.2 at 1.26x",
            HIGHER,
            unpaired(patience[2]["accuracy"], last, rows),
            "cifar.py",
            "cifar.json",
            f"{note}At {patience[2]['saving']:.0%} saved.",
        )
    ]
    for at in range(3):
        lines.append(
            row(
                f"pcee-{15 + at}",
                f"On CIFAR-10 with {words[at]} of the layers saved it beats PABEE.",
                "4.6.4, table 3",
                paper[at],
                HIGHER,
                unpaired(pcee[at]["accuracy"], patience[at]["accuracy"], rows),
                "cifar.py",
                "cifar.json",
                f"{note}At {pcee[at]['saving']:.0%} against {patience[at]['saving']:.0%} saved.",
            )
        )
    return lines


def steps() -> list[Figures]:
    """How finely the savings of PCEE-BERT and PABEE can be set."""
    gaps = {}
    for file in sorted((RESULTS / "studies").glob("*/pcee.json")):
        reached = {system["system"]: system["widest_gap"] for system in json.loads(file.read_text())["reached"]}
        if {"PABEE", "PCEE-BERT"} <= set(reached):
            gap = reached["PABEE"] - reached["PCEE-BERT"]
            gaps[file.parent.name] = {**figures(gap, gap, gap), "unit": "layers"}
    every = [gap["value"] for gap in gaps.values()]
    return [
        row(
            "pcee-18",
            "Its savings can be set more finely than PABEE's.",
            "3.1, table 1, appendix A.2, figure 8",
            "PABEE skips up to 1.7 layers (RTE)",
            HIGHER,
            {**figures(sum(every) / len(every), min(every), max(every)), "tasks": gaps} if every else ABSENT,
            "studies.py",
            "studies/README.md",
            "PABEE's widest gap between two mean exit layers that it can be set to, less PCEE-BERT's; the interval is "
            "the range over the cases.",
            "layers",
        )
    ]


def ranks() -> list[Figures]:
    """The rank of bypasses."""
    made = next(table for table in result("training.json")["tables"] if table["task"] == "sick" and table["depth"] == 6)
    some, usual = made["objectives"]["bypass-64"], made["objectives"]["bypass"]
    spread = 4.30 * math.hypot(some["average_sd"], usual["average_sd"]) / math.sqrt(3)
    gap = some["average"] - usual["average"]
    return [
        row(
            "badge-18",
            "The rank of a bypass matters little (64 against 16).",
            "4.6, table 3",
            "0.0 and -0.1 (average)",
            COMPARABLE,
            figures(*(100 * (gap + side * spread) for side in (0, -1, 1))),
            "training.py",
            "training.json",
            "SICK, Pearson's correlation, mean over the exits; the interval is Student's over three seeds (2 "
            "degrees of freedom), not over rows.",
        )
    ]


SOURCES: tuple[Callable[[], list[Figures]], ...] = (
    theorem,
    attack,
    training_time,
    images,
    steps,
    ranks,
)


def rows_elsewhere() -> list[Figures]:
    """Return the lines of all claims that other scripts measured."""
    return [line for source in SOURCES for line in source()]
