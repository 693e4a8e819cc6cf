"""PABEE's Theorem 1 and the Monte Carlo study of its appendix C, checked.

    python benchmarks/theorem.py

Exact probabilities beside simulation through offramp's own `patience`; how often each reading of the theorem is right
on a grid of settings; what errors that exits share do to it. Writes `benchmarks/results/theorem.json` and
`docs/theorem.png`; needs matplotlib (`[demo]`).
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from machine import provenance
from offramp.evaluation.patience_theorem import Setting, conditions, exact, needed_accuracy, simulate

ROOT = Path(__file__).parent.parent
SAMPLES, SEED = 100_000, 0
LAYERS = 12
PATIENCE = range(1, LAYERS)
EXAMPLE = Setting(LAYERS, 4, internal_error=0.2, last_error=0.1)  # the paper's
SHARED = (0.0, 0.25, 0.5, 1.0)
ACCURACIES = (0.6, 0.7, 0.8, 0.9)
GRID = [number / 50 for number in range(1, 50)]


def example() -> list[dict[str, object]]:
    """The paper's example at every patience: what is promised, what is true, what a simulation sees."""
    results = []
    for shared, patience in product(SHARED, PATIENCE):
        setting = replace(EXAMPLE, patience=patience, shared=shared)
        simulated = simulate(setting, SAMPLES, SEED)
        figures = {"exact": asdict(exact(setting)), "simulated": asdict(simulated)}
        results.append({"shared": shared, "patience": patience, "promised_by": promised(setting), **figures})
    return results


def promised(setting: Setting) -> list[str]:
    """The readings of the theorem that promise an improvement."""
    return [name for name, holds in conditions(setting).items() if holds]


def coverage() -> dict[str, object]:
    """How often each reading promises in vain, and how often it sees an improvement that is there.

    Over all n up to 12, t below n, q and p in steps of .02.
    """
    promises = dict.fromkeys(conditions(EXAMPLE), 0)
    broken = dict.fromkeys(promises, 0)
    settings = improved = 0
    for internal, q in product(range(2, LAYERS + 1), GRID):
        for patience, p in product(range(1, internal), GRID):
            setting = Setting(internal, patience, q, p)
            better = exact(setting).error < p
            settings, improved = settings + 1, improved + better
            for name in promised(setting):
                promises[name] += 1
                broken[name] += not better
    simulated = {name: count / improved for name, count in promises.items()}
    return {"settings": settings, "improved": improved, "share_seen": simulated, "broken_promises": broken}


def break_even() -> dict[int, float]:
    """At each patience of the paper's example, the share of shared answers above which patience costs accuracy."""
    results = {}
    for patience in PATIENCE:
        alone, shared = (exact(replace(EXAMPLE, patience=patience, shared=share)).error for share in (0.0, 1.0))
        results[patience] = (EXAMPLE.last_error - alone) / (shared - alone)  # the error is linear in the share
    return results


def gains() -> dict[float, dict[int, float]]:
    """Appendix C: by how much less accurate each of twelve equal classifiers may be, thanks to patience."""
    return {
        accuracy: {patience: accuracy - needed_accuracy(LAYERS, patience, accuracy) for patience in PATIENCE}
        for accuracy in ACCURACIES
    }


def draw_errors(axes: Axes, results: list[dict[str, object]]) -> None:
    """Error against patience: lines are exact, dots are simulated."""
    for number, shared in enumerate(SHARED):
        rows = [row for row in results if row["shared"] == shared]
        color = f"C{number}"
        for kind, style, label in (("exact", "-", f"{shared:.0%} shared"), ("simulated", ".", None)):
            errors = [dict(row[kind])["error"] for row in rows]  # type: ignore[call-overload]
            axes.plot(list(PATIENCE), errors, style, color=color, linewidth=1.6, markersize=7, label=label)
    axes.axhline(EXAMPLE.last_error, color="0.4", linestyle="--", linewidth=1)
    axes.annotate("without early exit", (2.0, EXAMPLE.last_error), xytext=(0, -11), textcoords="offset points")
    axes.axvspan(3.5, 11.5, color="0.93", zorder=0)
    axes.annotate("the theorem promises\nan improvement", (11.3, 0.232), ha="right", va="top", color="0.35")
    axes.set(xlabel="patience", ylabel="error", xlim=(0.5, 11.5), ylim=(0, 0.24), xticks=list(PATIENCE))
    axes.set_title("n = 12, q = 0.2, p = 0.1; answers that all exits share", fontsize=10)
    axes.legend(frameon=False, loc="center right", bbox_to_anchor=(1, 0.73), fontsize=9, ncols=2)


def draw_gains(axes: Axes, results: dict[float, dict[int, float]]) -> None:
    """Accuracy that each classifier may lack against patience."""
    for accuracy, gain in results.items():
        axes.plot(list(gain), list(gain.values()), ".-", linewidth=1.6, markersize=7, label=f"{accuracy:g}")
    axes.set(xlabel="patience", ylabel="accuracy that each exit may lack", xticks=list(PATIENCE), ylim=(0, None))
    axes.set_title("twelve equal, independent exits", fontsize=10)
    axes.legend(frameon=False, title="accuracy wanted", fontsize=9)


def main() -> None:
    """Compute, draw, write."""
    errors, gained = example(), gains()
    results = {
        "about": provenance(),
        "samples": SAMPLES,
        "seed": SEED,
        "paper_example": errors,
        "break_even_share": break_even(),
        "coverage": coverage(),
        "appendix_c_gain": gained,
    }
    (ROOT / "benchmarks" / "results" / "theorem.json").write_text(json.dumps(results, indent=1) + "\n")
    figure = Figure(figsize=(9.5, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    draw_errors(left, errors)
    draw_gains(right, gained)
    for axes in (left, right):
        axes.grid(alpha=0.25)
    figure.savefig(ROOT / "docs" / "theorem.png", dpi=95)
    print(json.dumps({name: results[name] for name in ("break_even_share", "coverage")}, indent=1))


if __name__ == "__main__":
    main()
