from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from collections import Counter
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from offramp.calibration.calibrate import calibrate
from offramp.errors import InvalidInput
from offramp.evaluation.bootstrap import BootstrapCurve, loss_interval
from offramp.evaluation.compare import compare
from offramp.evaluation.curves import score_at
from offramp.evaluation.slices import Slice
from offramp.model.token_similarity import TokenSimilarity
from offramp.policies.replay import replay
from offramp.report.html.content import Page, Texts, best_alternative, mean_times, page
from offramp.report.html.examples import MAX_CHARACTERS, groups, shortened
from offramp.report.html.exits import exit_rows
from offramp.report.html.lexical import lexical_fact
from offramp.report.html.render import code, render, script_json, worst
from offramp.report.html.times import gap_text
from offramp.report.html.verdict import PointAssessment, Verdict, certificate_text, decide, percent, target_text
from offramp.types.cost_table import CostTable
from offramp.types.operating_point import Certificate, Measured, OperatingPoint, Target
from offramp.types.outputs import Answers
from offramp.types.point_times import PointTimes
from offramp.types.problem_types import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from offramp.types.trace import Trace
from support.traces import random_trace

charts = pytest.importorskip("offramp.report.html.charts", reason="the page's charts need offramp[report]")

NASTY = "</script><script>alert('1')</script> & <img src=x onerror=alert(2)> NaN"
CERTIFICATE = Certificate("drop", 0.02, 0.05, 0.02, 0.0125, 400, "binomial", "torch", "data", "weights")


# --- the decision ---------------------------------------------------------------------------------------------------


def assessment(
    score: float,
    mean_exit: float = 3.0,
    loss: tuple[float, float] | None = (0.0, 0.02),
    name: str | None = "fast",
    in_sample: bool = False,
    rows: int = 400,
) -> PointAssessment:
    point = OperatingPoint({"name": "margin"}, (0.5,) * 5, {"max_drop": 0.01})
    measured = Measured("accuracy", score, 0.8, 0.95, mean_exit, 6, rows)
    return PointAssessment(name, point, measured, None, "No.", loss, in_sample)


@pytest.mark.parametrize(
    ("assessed", "verdict", "words"),
    [
        (
            assessment(0.792),
            Verdict.PAYS,
            "Early exit pays here: the point “fast” saves 50% of the layers and loses 0.8 points",
        ),
        (assessment(0.8), Verdict.PAYS, "loses no accuracy (asked: at most 1% of the score lost)."),
        (assessment(0.81), Verdict.PAYS, "gains 1.0 points of accuracy"),
        (assessment(0.79, loss=(0.0079, 0.02)), Verdict.UNCERTAIN, "on 400 rows it may be chance"),
        (assessment(0.79, loss=(0.0081, 0.02)), Verdict.MISSES_TARGET, "at most 1% of the score lost was asked for"),
        (assessment(0.8, mean_exit=6), Verdict.NO_EARLY_EXIT, "at the point “fast” every row runs all 6 layers"),
        (assessment(0.8, mean_exit=6, name=None), Verdict.NO_EARLY_EXIT, "at the best point every row runs all 6 lay"),
        (assessment(0.792, name=None), Verdict.NOT_SAVED, "No operating point is saved yet; margin saves 50%"),
        (
            assessment(0.8, rows=2, loss=(-0.776, 0.776)),
            Verdict.UNCERTAIN,
            "loses no accuracy on these rows. 2 rows promise little: up to 77.6 points of accuracy may be lost (95%).",
        ),
        (
            assessment(0.9, rows=2, loss=(-0.3, -0.05)),
            Verdict.UNCERTAIN,
            "2 rows promise little, but at least 5.0 points of accuracy are gained (95%).",
        ),
        (assessment(0.8, rows=298), Verdict.UNCERTAIN, "298 rows promise little: up to 2.0 points of accuracy"),
        (assessment(0.8, rows=299), Verdict.PAYS, "Early exit pays here"),
        (assessment(0.8, rows=1, loss=None), Verdict.UNCERTAIN, "1 row promises little: no interval of accuracy"),
        (assessment(0.5, rows=1, loss=None), Verdict.UNCERTAIN, "on 1 row it may be chance"),
        (assessment(0.8, rows=2, name=None), Verdict.NOT_SAVED, "2 rows promise little: up to 2.0 points"),
    ],
)
def test_early_exit_pays_where_layers_are_saved_and_the_target_is_met(
    assessed: PointAssessment, verdict: Verdict, words: str
) -> None:
    decision = decide(assessed)
    assert decision.verdict is verdict
    assert words in decision.headline


def test_a_speed_that_is_missed_is_named() -> None:
    cost = Measured("accuracy", 0.8, 0.8, 0.95, 3.0, 6, 400, macs=101.0, full_macs=200.0)
    point = OperatingPoint({"name": "margin"}, (0.5,) * 5, {"speedup": 2.0}, cost)
    decision = decide(replace(assessment(0.8), point=point, measured=cost))
    words = "and 2 times fewer multiply-accumulates was asked for; on these rows it is 1.98 times."
    assert decision.headline.endswith(words)


def test_an_f1_is_of_the_rows_of_its_class() -> None:
    few = replace(assessment(0.8, rows=4000, loss=(-0.3, 0.4)), counted=40)
    assert few.verdict is Verdict.UNCERTAIN
    assert "40 rows of the class promise little: up to 40.0 points" in decide(few).headline
    assert replace(few, counted=400).verdict is Verdict.PAYS
    trace = random_trace(SINGLE_LABEL, outputs=2, samples=40)
    point = {"default": OperatingPoint({"name": "fixed"}, (1.0,) * 5, {"speedup": 2.0})}
    for metric, words in (
        ("f1", f"{int(trace.labels.sum())} rows of the class promise"),
        ("accuracy", "40 rows promi"),
    ):
        shown = page("", trace, Texts(["a"] * 40, ["no", "yes"]), point, metric=metric, environment={})
        assert words in shown.decision.headline


def test_a_certificate_that_applies_needs_no_more_rows() -> None:
    few = assessment(0.8, rows=20)
    certified = replace(few, point=replace(few.point, certificate=CERTIFICATE))
    assert certified.verdict is Verdict.PAYS
    assert replace(certified, certificate_mismatch="other weights").verdict is Verdict.UNCERTAIN


def test_a_percentage_of_few_rows_has_its_count() -> None:
    few, many = (dict(decide(assessment(0.8, rows=rows)).facts)["What it loses"] for rows in (20, 400))
    assert "95% of the rows (19 of 20) get" in few
    assert "95% of the rows get" in many


def test_a_verdict_is_a_plain_word_in_json() -> None:
    assert json.dumps(list(Verdict)) == '["pays", "unsure", "costs", "idle", "open"]'


def test_the_facts_say_what_it_saves_and_loses_and_whether_the_rows_chose_it() -> None:
    facts = dict(decide(assessment(0.79)).facts)
    assert facts["Operating point"] == "“fast”: margin, threshold 0.5 (asked for: at most 1% of the score lost)."
    assert "after layer 3.00 of 6" in facts["What it saves"]
    assert "accuracy 0.7900 against 0.8000" in facts["What it loses"]
    assert "0.0 to 2.0 points" in facts["What it loses"]
    assert "very rows" not in facts["What it loses"]
    assert "very rows" in dict(decide(assessment(0.79, in_sample=True)).facts)["What it loses"]


def test_time_is_shown_where_it_was_measured() -> None:
    timed = assessment(0.792)
    measured = replace(timed.measured, expected_ms=12.0, provenance={"timed": "torch, 2 cores"})
    decision = decide(replace(timed, measured=measured, full_ms=20.0))
    assert "saves 50% of the layers, 40% of the time, and loses" in decision.headline
    assert "in 12 ms where all layers take 20 ms (torch, 2 cores)" in dict(decision.facts)["What it saves"]
    assert "Milliseconds were not measured" in dict(decide(assessment(0.792)).facts)["What it saves"]


def test_targets_of_time_and_speed_are_met_or_missed() -> None:
    loser = assessment(0.7, loss=(0.05, 0.15))
    outcomes = (
        ({"speedup": 2.0}, Verdict.PAYS),
        ({"speedup": 2.1}, Verdict.MISSES_TARGET),
        ({"agreement": 0.96}, Verdict.MISSES_TARGET),
    )
    for target, verdict in outcomes:
        assert replace(loser, point=replace(loser.point, target=target)).verdict is verdict
    # chosen by multiply-accumulates, of which it takes a half here, and timed here, where it takes two thirds
    costs = replace(loser.measured, macs=5.0, full_macs=10.0, expected_ms=4.0, full_ms=6.0)
    for chosen_on, target, verdict, words in (
        (replace(costs, expected_ms=None), 2.0, Verdict.PAYS, "2 times fewer multiply-accumulates"),
        (replace(costs, expected_ms=None), 2.1, Verdict.MISSES_TARGET, "2.1 times fewer multiply-accumulates"),
        (costs, 1.6, Verdict.MISSES_TARGET, "1.6 times fewer milliseconds"),
        (loser.measured, 2.0, Verdict.PAYS, "2 times fewer layers"),
        (None, 1.6, Verdict.MISSES_TARGET, "1.6 times cheaper"),
    ):
        point = replace(loser.point, target={"speedup": target}, measured=chosen_on)
        assert replace(loser, point=point, measured=costs).verdict is verdict
        assert target_text(point) == words
    slow = replace(loser, point=replace(loser.point, target={"latency_ms": 3.0}), full_ms=8.0)
    assert replace(slow, measured=replace(slow.measured, expected_ms=3.5)).verdict is Verdict.MISSES_TARGET
    assert replace(slow, measured=replace(slow.measured, expected_ms=2.5)).verdict is Verdict.PAYS


def test_a_certificate_reads_in_plain_words() -> None:
    assert certificate_text(None).startswith("Nothing: ")
    assert certificate_text(CERTIFICATE) == (
        "With 95% confidence, at most 2% of the full model's right answers lost, for rows drawn like the 400 it was "
        "certified on (seen there: 1.2%)."
    )
    assert certificate_text(CERTIFICATE, "other weights") == "Nothing here: the certificate is of other weights."
    assert certificate_text(replace(CERTIFICATE, delta=None)).startswith("On average over draws of rows, at most 2%")
    assert "nobody leaves early: too few rows" in certificate_text(replace(CERTIFICATE, note="too few rows"))


def test_no_share_reads_as_all_or_nothing_that_is_not() -> None:
    assert [percent(share) for share in (0.995, 0.9996, 0.999999, 0.0004, 1 - 1e-12)] == [
        "99.5%",
        "99.96%",
        "99.9999%",
        "0.04%",
        "100%",
    ]
    text = replace(CERTIFICATE, delta=1e-6).describe()
    assert text.startswith("certified with 0.999999 confidence: ")
    assert certificate_text(replace(CERTIFICATE, delta=1e-6)).startswith("With 99.9999% confidence")


def test_a_point_at_full_depth_loses_nothing_on_other_rows_either() -> None:
    facts = dict(decide(assessment(0.8, mean_exit=6, loss=(0.0, 0.0), in_sample=True)).facts)
    assert facts["What is guaranteed"] == "Nothing is lost, because nobody leaves early."
    assert "very rows" not in facts["What it loses"]


def test_shares_have_two_digits_and_no_empty_decimal() -> None:
    assert [percent(share) for share in (0.64, 0.05, 0.0512, 0.0995, 1, 0)] == [
        "64%",
        "5%",
        "5.1%",
        "10%",
        "100%",
        "0%",
    ]


# --- the lexical exit -----------------------------------------------------------------------------------------------


def lexical_trace() -> Trace:
    """`three_exits` at layers 0, 1 and 2: at a margin of .9 rows 0, 1 and 3 are sure before layer 1."""
    return replace(three_exits(), layers=torch.tensor([0, 1, 2]))


ALONE = "Alone the lexical exit has accuracy 0.5000, the next exit 0.5000, the full model 0.7500."


@pytest.mark.parametrize(
    ("thresholds", "layers", "fact"),
    [
        (
            (0.9, 0.9),
            (0, 1, 2),
            "75% of the rows are answered before layer 1, by the lexical exit; 67% of these answers are right, of the "
            "full model's 67%. With that exit closed, and the other thresholds as they are, accuracy is 0.7500 and a "
            "row leaves after layer 1.50 of 2 on average.",  # rows 0 and 3 after layer 1, 1 and 2 after layer 2
        ),
        ((0.99, 0.9), (0, 1, 2), f"No row. No score of the lexical exit reaches its threshold on these rows. {ALONE}"),
        (
            (math.inf, 0.9),
            (0, 1, 2),
            "No row. The threshold of the lexical exit is never: on the rows that chose it, no score was high enough. "
            + ALONE,
        ),
        (
            (0.9,),
            (1, 2),
            "No row. The point does not read the lexical exit: it was not there when the point was chosen, or did not "
            f"pay. {ALONE}",
        ),
    ],
)
def test_the_page_says_what_the_lexical_exit_answers_or_why_it_answers_nothing(
    thresholds: tuple[float, ...], layers: tuple[int, ...], fact: str
) -> None:
    point = OperatingPoint({"name": "margin"}, thresholds, exit_layers=layers)
    assert lexical_fact(lexical_trace(), point) == fact
    assert lexical_fact(three_exits(), replace(point, exit_layers=None, thresholds=(0.9, 0.9))) == ""


def test_a_page_with_a_lexical_exit_begins_at_layer_0() -> None:
    macs = torch.arange(6.0).unsqueeze(1).expand(6, 50)
    trace = random_trace(SINGLE_LABEL, layers=torch.arange(6))
    trace = replace(trace, macs=macs, fit_rows=torch.arange(50) < 3)
    point = OperatingPoint({"name": "margin"}, (0.3,) * 5, exit_layers=(0, 1, 2, 3, 4, 5))
    content = page("", trace, Texts(["a text"] * 50, ["a", "b", "c"]), {"default": point}, environment={})
    left = int((replay(trace, "margin", 0.3).exit_layers == 0).sum())
    assert content.groups[0].title == "Left first, before layer 1"
    assert (content.groups[0].count, content.exits[0].leaving) == (left, left)
    assert sum(group.lexical_share * group.rows for group in content.slices["label"]) == pytest.approx(left)
    assert (
        f"{percent(left / 50)} of the rows are answered" in dict(content.decision.facts)["What leaves before layer 1"]
    )
    assert "3 of 50 rows fitted the" in dict(content.decision.facts)["What these rows cannot show"]
    html = render(content)
    assert '<th scope="row">0 <small>(lexical)</small></th>' in html
    assert "Layer 0 is the lexical exit: a linear classifier" in html
    assert '<th scope="col">before layer 1</th>' in html
    curves = charts.curves(content)
    assert '"domain": [0, 5]' in json.dumps(curves)
    assert "mean exit layer (of 5; 0 = before layer 1)" in json.dumps(curves)
    assert "everybody leaves before layer 1" in json.dumps(curves)
    assert "speed-up: multiply-accumulates at full depth" in html
    assert f"<td>{5 / content.measured['default'].mean_exit:.2f}</td>" in html
    assert " times fewer multiply-accumulates)" in dict(content.decision.facts)["What it saves"]
    assert "lexical" not in html_of()


# --- exits and texts ------------------------------------------------------------------------------------------------


def three_exits() -> Trace:
    """Two classes; rows 0 and 1 are right everywhere, row 2 at the end alone, row 3 nowhere, though sure."""
    sure, torn = [4.0, 0.0], [0.1, 0.0]
    first = [sure, sure, [1.0, 0.0], sure]
    last = [sure, sure, [0.0, 2.0], sure]
    return Trace(torch.tensor([first, [sure, torn, [1.0, 0.0], sure], last]), torch.tensor([0, 0, 1, 1]))


def test_an_exit_counts_its_leaving_rows_and_the_share_of_them_that_is_right() -> None:
    trace = three_exits()
    rows = exit_rows(trace, replay(trace, "margin", 0.9))  # margins at exit 1: .96 .96 .46 .96
    assert [row.leaving for row in rows] == [3, 0, 1]
    assert [row.right for row in rows] == [pytest.approx(2 / 3), None, 1.0]
    assert [row.score for row in rows] == [0.5, 0.5, 0.75]
    assert rows[0].accuracy == 0.5
    high, low = (1 / (1 + math.exp(-margin)) for margin in (4.0, 1.0))
    assert rows[0].confidence is not None
    assert rows[0].confidence[1] == pytest.approx((3 * high + low) / 4)
    assert rows[0].confidence[0] == pytest.approx(low + 0.3 * (high - low))


def test_texts_are_grouped_by_their_exit_and_by_lost_answers() -> None:
    trace = three_exits()
    examples = groups(trace, replay(trace, "margin", 0.9), ["a", "b", ("c", "d"), "e"], ["no", "yes"])
    assert [(group.title, group.count) for group in examples] == [
        ("Left first, after layer 1", 3),
        ("Went to the end, layer 3", 1),
        ("Lost by leaving early: the full model is right", 0),
    ]
    (late,) = examples[1].examples
    assert (late.text, late.label, late.early, late.full, late.layer) == ("c | d", "yes", "yes", "yes", 3)
    lost = groups(trace, replay(trace, "margin", 0.4), ["a", "b", "c", "d"], ["no", "yes"])[-1]
    assert [(example.text, example.early, example.full) for example in lost.examples] == [("c", "no", "yes")]


def test_texts_are_one_line_of_limited_length() -> None:
    assert shortened("a\n\tb  c") == "a b c"
    assert len(shortened("x" * 400)) == MAX_CHARACTERS
    assert shortened("word " * 100).endswith("word…")


def test_the_loss_has_the_interval_of_a_mean_of_zeros_and_ones() -> None:
    """One row in four is lost: 1.96 standard errors of a share of .25 of 400 are .042."""
    logits = torch.tensor([1.0, 0.0]).repeat(2, 400, 1)
    logits[0, ::4] = torch.tensor([0.0, 1.0])
    trace = Trace(logits, torch.zeros(400, dtype=torch.long))
    early = Answers(logits[0], torch.ones(400, dtype=torch.long), torch.zeros(400, dtype=torch.bool))
    low, high = loss_interval(trace, early)
    assert low == pytest.approx(0.25 - 0.042, abs=0.012)
    assert high == pytest.approx(0.25 + 0.042, abs=0.012)


def test_another_policy_is_better_where_its_interval_is_above() -> None:
    trace = random_trace(SINGLE_LABEL)
    comparison = compare(trace)
    at = float(comparison.bands["entropy"].mean_exits.median())
    best = max(
        score_at(band.mean_exits, band.scores, at) or 0 for name, band in comparison.bands.items() if name != "entropy"
    )
    for own, word in ((0.0, "Yes: "), (best - 0.001, "Not clearly: "), (best, "No: ")):
        sentence = best_alternative(comparison, "entropy", Measured("accuracy", own, 1.0, None, at, 6, 25))
        assert sentence.startswith(word)
        assert f"{best:.4f}" in sentence


def test_times_of_a_policy_are_those_of_a_replay() -> None:
    comparison = compare(random_trace(SINGLE_LABEL))
    cost = CostTable((1, 2, 3, 4, 5, 6), (2.0, 3.0, 5.0, 8.0, 13.0, 21.0), 1.0, "torch", 1, None, "a machine")
    times = mean_times(comparison, cost)
    assert set(times) == set(comparison.bands)
    for name in ("entropy", "patience", "fixed"):
        for number in (0, len(times[name]) // 2, -1):
            answers = replay(
                comparison.trace, comparison.policies[name], comparison.bands[name].thresholds[number].item()
            )
            assert times[name][number].item() == pytest.approx(cost.mean_ms(answers.exit_layers))


# --- the page -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def _loaded() -> None:
    """The first page in a process loads what takes seconds."""
    html_of()


@cache
def html_of(problem_type: str = SINGLE_LABEL, points: bool = True) -> str:
    return render(a_page(problem_type, points))


def a_page(problem_type: str = SINGLE_LABEL, points: bool = True, **more: Any) -> Page:
    outputs = 1 if problem_type == REGRESSION else 3
    trace = random_trace(problem_type, outputs=outputs)
    trace = replace(trace, tokens=torch.arange(len(trace)) % 40 + 3)
    policy = "stability" if problem_type == REGRESSION else "entropy"
    saved = {
        "default": calibrate(trace, policy, Target(speedup=1.2)),
        NASTY: OperatingPoint({"name": policy}, (math.inf,) * (trace.depth - 1)),
    }
    names = () if problem_type == REGRESSION else (NASTY, "b", "c")
    texts = Texts([f"{NASTY} {number}" for number in range(len(trace))], names)
    ms = (2.0, 3.0, 5.0, 8.0, 13.0, 21.0)
    cost = CostTable((1, 2, 3, 4, 5, 6), ms, 1.0, "torch", 1, None, NASTY, exit_ms=(0.5,) * 5) if points else None
    return page(f"of {NASTY}", trace, texts, saved if points else {}, cost=cost, environment={"data": NASTY}, **more)


class Parsed(HTMLParser):
    """The tags of a page with their attributes, its scripts and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.words: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        (self.scripts if self.cdata_elem == "script" else self.words).append(data)


def no_constant(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


@pytest.mark.parametrize("points", [True, False])
@pytest.mark.parametrize("problem_type", [SINGLE_LABEL, MULTI_LABEL, REGRESSION])
def test_the_page_is_whole_and_loads_nothing(problem_type: str, points: bool) -> None:
    html = html_of(problem_type, points)
    parsed = Parsed(html)
    count = Counter(tag for tag, _ in parsed.tags)
    assert (count["script"], count["img"], count["link"], count["h1"]) == (3, 0, 0, 1)
    for tag, attributes in parsed.tags:
        assert not {"src", "href", "srcset"} & set(attributes), tag
        assert not any(name.startswith("on") for name in attributes), tag
    assert re.findall(r'class="decision (.*?)"', html)[0] in [verdict.value for verdict in Verdict]
    style = html[html.index("<style>") : html.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    specs = json.loads(re.findall(r'id="charts">(.*?)</script>', html, re.DOTALL)[0], parse_constant=no_constant)
    targets = {attributes["data-chart"] for _, attributes in parsed.tags if "data-chart" in attributes}
    assert targets == set(specs["charts"])
    assert "http" not in json.dumps(specs)
    words = " ".join(parsed.words).replace(NASTY, "")
    assert not re.search(r"\b(nan|inf|None|undefined)\b", words)
    assert ("saves, ms" in words, "0.5000" in words) == (points, points)


def drawn(html: str) -> dict[str, Any]:
    """Return the specifications of a page's charts by name."""
    return json.loads(re.findall(r'id="charts">(.*?)</script>', html, re.DOTALL)[0])["charts"]


def test_a_reliability_diagram_has_the_bins_of_its_exit() -> None:
    """At exit 2 three rows have a probability of 1 / (1 + e^-4) = .982, two of them right, and row 1 has .525, right;
    row 2 is wrong with .731. The temperature of 4 makes .731 of .982, and .506 and .562 of the others.
    """
    trace = lexical_trace()
    tempered = OperatingPoint({"name": "margin", "temperatures": (4.0, 1.0)}, (0.9,), exit_layers=(1, 2))
    html = render(page("", trace, Texts(["a"] * 4, ["no", "yes"]), {"default": tempered}, environment={}))
    specs = drawn(html)
    assert [name for name in specs if name.startswith("reliability")] == [f"reliability-{layer}" for layer in (0, 1, 2)]
    _, spans, marks = specs["reliability-1"]["layer"]
    bins = marks["data"]["values"]
    assert spans["data"]["values"] == bins
    shown = [(one["what"], one["answers"], one["confidence"], one["right"], one["few"]) for one in bins]
    assert shown == [
        ("as it is", 1, pytest.approx(0.525, abs=1e-4), 1.0, True),
        ("as it is", 1, pytest.approx(0.7311, abs=1e-4), 0.0, True),
        ("as it is", 2, pytest.approx(0.982, abs=1e-4), 0.5, True),
        ("with its temperature", 1, pytest.approx(0.5062, abs=1e-4), 1.0, True),
        ("with its temperature", 1, pytest.approx(0.5622, abs=1e-4), 0.0, True),
        ("with its temperature", 2, pytest.approx(0.7311, abs=1e-4), 0.5, True),
    ]
    assert {one["what"] for one in specs["reliability-0"]["layer"][2]["data"]["values"]} == {"as it is"}  # not read
    before, after = (0.475 + 0.7311 + 2 * 0.482) / 4, (0.4938 + 0.5622 + 2 * 0.2311) / 4
    assert f"error {before:.3f} → {after:.3f}<br>" in html
    assert "<b>layer 0</b> (lexical)" in html


TIMES = PointTimes(
    8, 1, 1.5, 1.0, 30.25, 20.0, 2.0, 10.0, (11.0, 9.0, 10.5), (3.0, 2.2, 2.4), (4.0, 3.0, 5.0), (0.5, 0.25, 0.3)
)
ALIKE = TokenSimilarity(
    torch.tensor([[0.1, 0.3], [0.2, 0.6], [0.9, 0.7]], dtype=torch.float64),
    torch.tensor([0.05, 0.1, math.nan], dtype=torch.float64),
)


def test_a_page_has_expected_and_measured_times_and_the_similarity_of_tokens() -> None:
    html = render(a_page(times=TIMES, similarity=ALIKE))
    specs = drawn(html)
    assert specs["times"]["data"]["values"] == [
        {"run": "full depth", "ms": 10.5, "low": 9.0, "high": 11.0, "expected": 10.0},
        {"run": "at the point", "ms": 2.4, "low": 2.2, "high": 3.0, "expected": 2.0},
        {"run": "from text", "ms": 4.0, "low": 3.0, "high": 5.0, "expected": 2.0},
    ]
    assert "<td>2.4 <small>2.2\u20133</small></td><td>1.20 <small>1.10\u20131.50</small></td>" in html
    assert "took 1.20 times what was expected (1.10 to 1.50). At full depth" in html
    assert "a layer ran on texts of 30.2 tokens on average, the table&#39;s have 20.0; a longer text takes" in html
    assert "ran on 1.0 rows of a batch and texts of 30.2 tokens" in gap_text(replace(TIMES, batch_size=8))
    assert "a layer ran" not in gap_text(replace(TIMES, rows_a_layer=None))
    spans, lines = (layer["data"]["values"] for layer in specs["similarity"]["layer"])
    assert spans[1] == {"layer": "1", "low": 0.24, "high": 0.56}  # a tenth of the way from .2 to .6, and nine of it
    values = [(point["layer"], point["what"], point["value"]) for point in lines]
    assert values == [
        ("embedding", "of one text", 0.2),
        ("embedding", "of two texts", 0.05),
        ("1", "of one text", 0.4),
        ("1", "of two texts", 0.1),
        ("2", "of one text", 0.8),
    ]


def test_a_page_says_why_it_has_no_similarity_of_tokens() -> None:
    html = render(a_page(similarity="`--engine torch` has it"))
    assert "similarity of tokens by layer: <code>--engine torch</code> has it." in html
    assert not {"times", "similarity"} & set(drawn(html))


def test_a_regression_has_no_reliability_and_the_page_says_so() -> None:
    html = html_of(REGRESSION, True)
    assert not any(name.startswith("reliability") for name in drawn(html))
    assert "A regression has no probabilities" in html
    assert "of decisions, label by label, of similar confidence" in html_of(MULTI_LABEL, True)
    assert "behind the arrow" not in html_of()


def test_what_users_wrote_stays_text() -> None:
    parsed = Parsed(html_of())
    words = " ".join(parsed.words)
    assert words.count(NASTY) > 10
    assert not any("</script" in script or "<img" in script for script in parsed.scripts[-2:])


def test_every_reference_inside_the_page_has_one_target() -> None:
    tags = Parsed(html_of()).tags
    names = Counter(attributes["id"] for _, attributes in tags if "id" in attributes)
    assert set(names.values()) == {1}
    wanted = {attributes["aria-labelledby"] for _, attributes in tags if "aria-labelledby" in attributes}
    assert wanted <= set(names)
    levels = [int(tag[1]) for tag, _ in tags if re.fullmatch("h[1-6]", tag)]
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_the_page_shows_the_named_point() -> None:
    assert a_page().point_name == "default"
    assert a_page(name=NASTY).decision.verdict is Verdict.NO_EARLY_EXIT
    with pytest.raises(InvalidInput, match="no saved operating point 'slow'; there are: default"):
        a_page(name="slow")


def test_the_page_says_what_its_rows_cannot_show_and_has_recall_by_label() -> None:
    facts = dict(a_page().decision.facts)
    assert facts["What these rows cannot show"].startswith("50 rows promise little: ")
    assert "What these rows cannot show" not in dict(decide(assessment(0.8)).facts)
    assert "By label, recall: the share of a label" in html_of()
    trace = random_trace(MULTI_LABEL)
    assert {each.name: each.rows for each in a_page(MULTI_LABEL).slices["label"]} == dict(
        zip((NASTY, "b", "c"), trace.labels.sum(dim=0).tolist(), strict=True)
    )


def test_a_metric_of_ranks_has_a_page_too() -> None:
    ranked = a_page(REGRESSION, metric="spearman")
    assert ranked.metric == ranked.comparison.metric == "spearman"
    assert "spearman" in dict(ranked.decision.facts)["What it loses"]


def test_where_no_point_is_saved_one_is_chosen_on_these_rows() -> None:
    unsaved = a_page(points=False)
    assert unsaved.point_name == ""
    assert unsaved.decision.verdict in (Verdict.NOT_SAVED, Verdict.NO_EARLY_EXIT)
    assert "very rows" in dict(unsaved.decision.facts)["What it loses"]


def test_what_is_typed_is_marked_and_what_is_not_is_escaped() -> None:
    assert code("use `a < b`, <b>") == "use <code>a &lt; b</code>, &lt;b&gt;"
    assert script_json({"a": "</script>&"}) == '{"a":"\\u003c/script\\u003e\\u0026"}'
    with pytest.raises(ValueError, match="not JSON compliant"):
        script_json({"a": math.nan})


def test_the_worst_slice_loses_most_and_has_enough_rows_to_say_so() -> None:
    few, most, some = (
        Slice(name, rows, score, 0.9, 2.0, None)
        for name, rows, score in (("x", 3, 0.0), ("y", 50, 0.7), ("z", 50, 0.8))
    )
    assert worst([few, most, some]) is most
    assert worst([few]) is None
    assert worst([replace(most, score=0.9)]) is None


def test_a_curve_is_drawn_at_even_distances_and_keeps_its_ends() -> None:
    exits = torch.linspace(6, 1, 1001, dtype=torch.float64)
    band = BootstrapCurve(
        torch.cat((torch.tensor([math.inf]), torch.linspace(0.9, 0.1, 1000))), exits, exits / 6, exits / 7, exits / 5
    )
    rows = charts.curve_rows("margin", band)
    assert 80 <= len(rows) <= charts.MAX_CURVE_POINTS + 2
    assert (rows[0]["threshold"], rows[0]["mean_exit"], rows[-1]["mean_exit"]) == ("never", 6, 1)
    assert rows[-1]["threshold"] == "0.1"
    assert rows[-1]["low"] == pytest.approx(1 / 7, abs=1e-4)


# --- in a browser ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_browser_without_a_network_draws_every_chart(tmp_path: Path) -> None:
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("there is no Chromium")
    (tmp_path / "page.html").write_text(html_of(), encoding="utf-8")
    quiet = ("--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}")
    offline = ("--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=10000", "--enable-logging=stderr")
    run = subprocess.run(
        [browser, *quiet, *offline, "--dump-dom", (tmp_path / "page.html").as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "CONSOLE" not in run.stderr
    body = run.stdout[: run.stdout.index("</main>")]
    assert body.count("<svg") == 10  # six of them of the exits' reliability
    assert body.count('aria-roledescription="bar"') == 6
    assert "entropy; threshold: never" in body
