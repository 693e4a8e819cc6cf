"""Claims of MPEE that other scripts measured: what token exit costs and saves, and why tokens may leave."""

from __future__ import annotations

from claims_elsewhere import ABSENT, Figures, figures, result, row, unpaired
from claims_page import HIGHER, Rule, not_below


def tokens() -> list[Figures]:
    """Token exit on long and on short texts."""
    made, lines = result("tokens.json")["tasks"], []
    for number, task, length, rows in ((11, "IMDB", "long", 800), (12, "SST-2", "short", 300)):
        told = made[task]["told"]
        both, alone = told["mild"]["half of them"], told["all stay"]["half of them"]
        lines.append(
            row(
                f"mpee-{number}",
                f"On top of layer exit, token exit costs little on {length} texts ({task}).",
                "table 2",
                "+0.1 to +0.4 points for both axes (accuracy, SST-2, RTE, QQP, QNLI)",
                not_below(3.0),
                unpaired(both["score"], alone["score"], rows),
                "tokens.py",
                "tokens.json",
                f"Half of the layers saved, {made[task]['mean_tokens']:.0f} tokens on average: "
                f"{both['macs_ratio']:.2f}x fewer multiply-accumulates against {alone['macs_ratio']:.2f}x. One "
                "seed; the interval takes the rows for different ones.",
            )
        )
    return lines


def axes() -> list[Figures]:
    """Both axes on the clock, on long texts."""
    made = result("both_axes.json")
    found = {entry["system"]: entry for entry in (made or {"results": []})["results"] if entry["engine"] == "onnx-int8"}
    lines = []
    for number, rival, words in ((15, "layer exit", "layers alone"), (16, "token exit", "tokens alone")):
        times, note = ABSENT, "Not raced yet."
        if found:
            both, alone = found["token exit, layer exit"], found[rival]
            fast, slow = both["speedup"]["32"], alone["speedup"]["32"]
            low, high = fast["low"] / slow["high"], fast["high"] / slow["low"]
            times = figures(fast["median"] / slow["median"], low, high)
            note = (
                "IMDB, MiniLM, ONNX Runtime int8, batches of 32, asked to lose at most 1 %: both lose "
                f"{both['lost']:.1%} at {both['macs_ratio']:.2f}x fewer multiply-accumulates, {words} "
                f"{alone['lost']:.1%} at {alone['macs_ratio']:.2f}x. Speed-up of both over that of one; the interval "
                "is the range of the rounds."
            )
        text = f"On the clock, too, both axes are faster than {words} (long texts)."
        source = ("both_axes.py", "both_axes.json" if found else "claims.json")
        lines.append(
            row(
                f"mpee-{number}",
                text,
                "table 2",
                "1.4x to 2.1x over either, by FLOPs",
                Rule("above", 1.0),
                times,
                *source,
                note,
                "times",
            )
        )
    return lines


def similarity() -> list[Figures]:
    """Tokens by layer."""
    made, found, tasks = result("token_similarity.json"), ABSENT, {}
    if made is not None:
        tasks = {name: {**figures(*model["growth"]), "unit": "cosine"} for name, model in made["models"].items()}
        ends = [[task[end] for task in tasks.values()] for end in ("value", "low", "high")]
        found = {**figures(sum(ends[0]) / len(tasks), min(ends[1]), max(ends[2])), "tasks": tasks}
    return [
        row(
            "mpee-17",
            "The tokens of a text become more alike with depth.",
            "1, figure 1",
            "plotted, not printed",
            HIGHER,
            found,
            "token_similarity.py",
            "token_similarity.json",
            "Mean cosine of two tokens of a text, last layer less first, without special tokens; models of SNLI, on "
            "its test rows. The interval holds those of both models. Tokens of different texts do not become so alike.",
            "cosine",
        )
    ]
