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
from offramp.policies.replay import replay
from offramp.report.html.content import Page, Texts, best_alternative, page, times
from offramp.report.html.examples import LONGEST, groups, shortened
from offramp.report.html.exits import exit_rows
from offramp.report.html.render import code, in_script, render, worst
from offramp.report.html.verdict import PointAssessment, certificate_text, decide, percent
from offramp.types.cost_table import CostTable
from offramp.types.operating_point import Certificate, Measured, OperatingPoint, Target
from offramp.types.outputs import Answers
from offramp.types.problem_types import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from offramp.types.trace import Trace
from support.traces import random_trace

charts = pytest.importorskip("offramp.report.html.charts", reason="the page's charts need offramp[report]")

NASTY = "</script><script>alert('1')</script> & <img src=x onerror=alert(2)> NaN"
CERTIFICATE = Certificate("drop", 0.02, 0.05, 0.02, 0.0125, 400, "binomial", "torch", "data", "weights")


# --- the decision ---------------------------------------------------------------------------------------------------


def case(score: float, mean_exit: float = 3.0, loss: tuple[float, float] = (0.0, 0.02), **more: Any) -> PointAssessment:
    point = OperatingPoint({"name": "margin"}, (0.5,) * 5, {"max_drop": 0.01})
    told = Measured("accuracy", score, 0.8, 0.95, mean_exit, 6, 200)
    return PointAssessment("fast", point, told, None, "No.", loss, **more)


@pytest.mark.parametrize(
    ("given", "verdict", "words"),
    [
        (case(0.792), "pays", "Early exit pays here: the point “fast” saves 50% of the layers and loses 0.8 points"),
        (case(0.8), "pays", "loses no accuracy"),
        (case(0.81), "pays", "gains 1.0 points of accuracy"),
        (case(0.79, loss=(0.0079, 0.02)), "unsure", "on 200 rows it may be chance"),
        (case(0.79, loss=(0.0081, 0.02)), "costs", "at most 1% of the score lost was asked for"),
        (case(0.8, mean_exit=6), "idle", "every row runs all 6 layers"),
        (case(0.792, saved=False), "open", "No operating point is saved yet; margin saves 50%"),
    ],
)
def test_early_exit_pays_where_layers_are_saved_and_what_was_asked_is_held(
    given: PointAssessment, verdict: str, words: str
) -> None:
    told = decide(given)
    assert told.verdict == verdict
    assert words in told.headline


def test_the_facts_say_what_it_saves_and_loses_and_whether_the_rows_chose_it() -> None:
    facts = dict(decide(case(0.79)).facts)
    assert facts["Operating point"] == "“fast”: margin, threshold 0.5 (asked for: at most 1% of the score lost)."
    assert "after layer 3.00 of 6" in facts["What it saves"]
    assert "accuracy 0.7900 against 0.8000" in facts["What it loses"]
    assert "0.0 to 2.0 points" in facts["What it loses"]
    assert "very rows" not in facts["What it loses"]
    assert "very rows" in dict(decide(case(0.79, seen=True)).facts)["What it loses"]


def test_time_is_told_where_it_was_measured() -> None:
    timed = case(0.792)
    measured = replace(timed.told, expected_ms=12.0, provenance={"timed": "torch, 2 cores"})
    timed = replace(timed, told=measured, full_ms=20.0)
    told = decide(timed)
    assert "saves 50% of the layers, 40% of the time, and loses" in told.headline
    assert "in 12 ms where all layers take 20 ms (torch, 2 cores)" in dict(told.facts)["What it saves"]
    assert "Milliseconds were not measured" in dict(decide(case(0.792)).facts)["What it saves"]


def test_what_was_asked_in_time_and_speed_is_held_or_not() -> None:
    given = case(0.7, loss=(0.05, 0.15))
    for target, verdict in (({"speedup": 2.0}, "pays"), ({"speedup": 2.1}, "costs"), ({"agreement": 0.96}, "costs")):
        assert replace(given, point=replace(given.point, target=target)).verdict == verdict
    slow = replace(given, point=replace(given.point, target={"latency_ms": 3.0}), full_ms=8.0)
    assert replace(slow, told=replace(slow.told, expected_ms=3.5)).verdict == "costs"
    assert replace(slow, told=replace(slow.told, expected_ms=2.5)).verdict == "pays"


def test_a_promise_is_told_in_plain_words() -> None:
    assert certificate_text(None).startswith("Nothing: ")
    assert certificate_text(CERTIFICATE) == (
        "With 95% confidence, at most 2% of the full model's right answers lost, for rows drawn like the 400 it was "
        "certified on (seen there: 1.2%)."
    )
    assert certificate_text(CERTIFICATE, "other weights") == "Nothing here: the certificate is of other weights."
    assert certificate_text(replace(CERTIFICATE, delta=None)).startswith("On average over draws of rows, at most 2%")
    assert "nobody leaves early: too few rows" in certificate_text(replace(CERTIFICATE, note="too few rows"))


def test_shares_have_two_digits_and_no_empty_decimal() -> None:
    assert [percent(share) for share in (0.64, 0.05, 0.0512, 0.0995, 1, 0)] == [
        "64%",
        "5%",
        "5.1%",
        "10%",
        "100%",
        "0%",
    ]


# --- exits and texts ------------------------------------------------------------------------------------------------


def three_exits() -> Trace:
    """Two classes; rows 0 and 1 are right everywhere, row 2 at the end alone, row 3 nowhere, though sure."""
    sure, torn = [4.0, 0.0], [0.1, 0.0]
    first = [sure, sure, [1.0, 0.0], sure]
    last = [sure, sure, [0.0, 2.0], sure]
    return Trace(torch.tensor([first, [sure, torn, [1.0, 0.0], sure], last]), torch.tensor([0, 0, 1, 1]))


def test_exits_tell_who_leaves_there_and_how_many_of_them_are_right() -> None:
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


def test_texts_are_grouped_by_when_they_left_and_by_what_that_cost() -> None:
    trace = three_exits()
    early = groups(trace, replay(trace, "margin", 0.9), ["a", "b", ("c", "d"), "e"], ["no", "yes"])
    assert [(group.title, group.count) for group in early] == [
        ("Left first, after layer 1", 3),
        ("Went to the end, layer 3", 1),
        ("Lost by leaving early: the full model is right", 0),
    ]
    (late,) = early[1].examples
    assert (late.text, late.label, late.early, late.full, late.layer) == ("c | d", "yes", "yes", "yes", 3)
    lost = groups(trace, replay(trace, "margin", 0.4), ["a", "b", "c", "d"], ["no", "yes"])[-1]
    assert [(each.text, each.early, each.full) for each in lost.examples] == [("c", "no", "yes")]


def test_texts_are_one_line_of_limited_length() -> None:
    assert shortened("a\n\tb  c") == "a b c"
    assert len(shortened("x" * 400)) == LONGEST
    assert shortened("word " * 100).endswith("word…")


def test_the_loss_is_certain_where_every_row_agrees() -> None:
    trace = Trace(torch.tensor([[[1.0, 0.0]] * 8, [[0.0, 1.0]] * 8]), torch.ones(8, dtype=torch.long))
    assert loss_interval(trace, replay(trace, "margin", 0.0)) == (1.0, 1.0)
    assert loss_interval(trace, replay(trace, "margin", math.inf)) == (0.0, 0.0)


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
    seen = compare(trace)
    at = float(seen.bands["entropy"].mean_exits.median())
    best = max(
        score_at(band.mean_exits, band.scores, at) or 0 for name, band in seen.bands.items() if name != "entropy"
    )
    for own, word in ((0.0, "Yes: "), (best - 0.001, "Not clearly: "), (best, "No: ")):
        told = best_alternative(seen, "entropy", Measured("accuracy", own, 1.0, None, at, 6, 25))
        assert told.startswith(word)
        assert f"{best:.4f}" in told


def test_times_of_a_policy_are_those_of_a_replay() -> None:
    seen = compare(random_trace(SINGLE_LABEL))
    cost = CostTable((1, 2, 3, 4, 5, 6), (2.0, 3.0, 5.0, 8.0, 13.0, 21.0), 1.0, "torch", 1, None, "a machine")
    found = times(seen, cost)
    assert set(found) == set(seen.bands)
    for name in ("entropy", "patience", "fixed"):
        for number in (0, len(found[name]) // 2, -1):
            answers = replay(seen.trace, seen.policies[name], seen.bands[name].thresholds[number].item())
            assert found[name][number].item() == pytest.approx(cost.mean_ms(answers.exit_layers))


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
    cost = (
        CostTable((1, 2, 3, 4, 5, 6), (2.0, 3.0, 5.0, 8.0, 13.0, 21.0), 1.0, "torch", 1, None, NASTY)
        if points
        else None
    )
    return page(f"of {NASTY}", trace, texts, saved if points else {}, cost=cost, environment={"data": NASTY}, **more)


class Seen(HTMLParser):
    """Which tags there are, with which attributes, and what scripts hold."""

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
    seen = Seen(html)
    count = Counter(tag for tag, _ in seen.tags)
    assert (count["script"], count["img"], count["link"], count["h1"]) == (3, 0, 0, 1)
    for tag, attributes in seen.tags:
        assert not {"src", "href", "srcset"} & set(attributes), tag
        assert not any(name.startswith("on") for name in attributes), tag
    style = html[html.index("<style>") : html.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    given = json.loads(re.findall(r'id="charts">(.*?)</script>', html, re.DOTALL)[0], parse_constant=no_constant)
    places = {attributes["data-chart"] for _, attributes in seen.tags if "data-chart" in attributes}
    assert places == set(given["charts"])
    assert "http" not in json.dumps(given)
    words = " ".join(seen.words).replace(NASTY, "")
    assert not re.search(r"\b(nan|inf|None|undefined)\b", words)


def test_what_users_wrote_stays_text() -> None:
    seen = Seen(html_of())
    words = " ".join(seen.words)
    assert words.count(NASTY) > 10
    assert not any("</script" in script or "<img" in script for script in seen.scripts[-2:])


def test_every_reference_inside_the_page_has_one_target() -> None:
    tags = Seen(html_of()).tags
    names = Counter(attributes["id"] for _, attributes in tags if "id" in attributes)
    assert set(names.values()) == {1}
    wanted = {attributes["aria-labelledby"] for _, attributes in tags if "aria-labelledby" in attributes}
    assert wanted <= set(names)
    levels = [int(tag[1]) for tag, _ in tags if re.fullmatch("h[1-6]", tag)]
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_the_page_is_about_the_point_that_was_named() -> None:
    assert a_page().shown == "default"
    assert a_page(name=NASTY).decision.verdict == "idle"
    with pytest.raises(InvalidInput, match="no saved operating point 'slow'; there are: default"):
        a_page(name="slow")


def test_a_metric_of_ranks_is_told_too() -> None:
    told = a_page(REGRESSION, metric="spearman")
    assert told.metric == told.comparison.metric == "spearman"
    assert "spearman" in dict(told.decision.facts)["What it loses"]


def test_where_no_point_is_saved_one_is_found_on_these_rows() -> None:
    told = a_page(points=False)
    assert told.shown == ""
    assert told.decision.verdict in ("open", "idle")
    assert "very rows" in dict(told.decision.facts)["What it loses"]


def test_what_is_typed_is_marked_and_what_is_not_is_escaped() -> None:
    assert code("use `a < b`, <b>") == "use <code>a &lt; b</code>, &lt;b&gt;"
    assert in_script({"a": "</script>&"}) == '{"a":"\\u003c/script\\u003e\\u0026"}'
    with pytest.raises(ValueError, match="not JSON compliant"):
        in_script({"a": math.nan})


def test_the_worst_slice_loses_most_and_has_enough_rows_to_say_so() -> None:
    few, most, some = (
        Slice(name, rows, score, 0.9, 2.0, None)
        for name, rows, score in (("x", 3, 0.0), ("y", 50, 0.7), ("z", 50, 0.8))
    )
    assert worst([few, most, some]) is most
    assert worst([few]) is None
    assert worst([replace(most, score=0.9)]) is None


def test_a_curve_is_drawn_at_even_places_and_keeps_its_ends() -> None:
    exits = torch.linspace(6, 1, 1001, dtype=torch.float64)
    band = BootstrapCurve(
        torch.cat((torch.tensor([math.inf]), torch.linspace(0.9, 0.1, 1000))), exits, exits / 6, exits / 7, exits / 5
    )
    rows = charts.places("margin", band)
    assert 80 <= len(rows) <= charts.MOST_PLACES + 2
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
    drawn = run.stdout[: run.stdout.index("</main>")]
    assert drawn.count("<svg") == 4
    assert drawn.count('aria-roledescription="bar"') == 6
    assert "entropy; threshold: never" in drawn
