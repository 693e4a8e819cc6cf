"""The page in a real Chromium, at desk and at phone width, before a real server; one browser for all tests."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from offramp.types.operating_point import Certificate, Measured, OperatingPoint, write_points
from support.browser import Browser, browsing, chromium
from support.graphs import copied
from support.models import texts
from support.server import Server, serving

pytestmark = pytest.mark.skipif(chromium() is None, reason="there is no Chromium")

DESK, PHONE = (1200, 900), (360, 640)
TEXT = "good cat"
ENTER, TAB, LEFT, RIGHT = ("Enter", 13, "\r"), ("Tab", 9), ("ArrowLeft", 37), ("ArrowRight", 39)
FOCUS = "document.activeElement.id"
RESULT = "document.getElementById('result').textContent"


def rung(speedup: float, *thresholds: float) -> OperatingPoint:
    """Return a point that is certified to differ from full depth for at most 1 % of the rows."""
    certificate = Certificate("agreement", 0.01, 0.05, 0.01, 0.0, 500, "binomial", "onnx-int8", "ab")
    measured = Measured(None, None, None, 1.0, 4 / speedup, 4, 500)
    return OperatingPoint({"name": "entropy"}, thresholds, measured=measured, agreement=certificate)


@pytest.fixture(scope="module")
def server(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a ladder, whose last rung leaves after layer 1 whatever it is unsure of."""
    folder = copied(exported, tmp_path_factory.mktemp("ladder") / "model")
    write_points({"2x": rung(2, 0.05, 0.06, 0.07), "4x": rung(4, 0.0, 0.0, 0.0)}, folder / "operating_points.json")
    options = ("--ladder", "--operating-point", "2x", "--audit-share", "1", "--api-key", "k")
    with serving(folder, "--engine", "onnx-int8", "--workers", "1", *options) as server:
        yield server


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browsing(tmp_path_factory.mktemp("browser")) as browser:
        yield browser


@pytest.fixture
def page(server: Server, tab: Browser) -> Iterator[Browser]:
    """The page, opened, with its key; at the end nothing was asked of another server, and no error was logged."""
    tab.requests.clear()
    tab.console.clear()
    tab.size(*DESK)
    tab.open(f"http://127.0.0.1:{server.port}/ui")
    tab.until(f"{FOCUS} === 'key'")
    tab.console.clear()  # the browser logs the 401
    tab.type("k")
    tab.press(*ENTER)
    tab.until("document.getElementById('status').className === 'up'")
    yield tab
    assert {url.split("/ui")[0] for url in tab.requests} == {f"http://127.0.0.1:{server.port}"}
    assert tab.console == []


def climb(page: Browser, text: str = TEXT) -> None:
    page.value("document.getElementById('text').select()")
    page.value("document.getElementById('text').focus()")
    page.type(text)
    page.press(*ENTER)
    page.until(f"{RESULT}.includes('layer') && !document.getElementById('exits').hasAttribute('aria-busy')")


def exits(page: Browser) -> Any:
    """Return of each exit its class, its title, its outputs and its reason."""
    parts = "['.layer', '.names', '.reason'].map((part) => item.querySelector(part).textContent.trim())"
    return page.value(f"[...document.getElementById('exits').children].map((item) => [item.className, ...{parts}])")


def classified(server: Server, point: str) -> Any:
    """Return the answer of the wire formats to TEXT, with its early exit."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    body = {"inputs": TEXT, "early_exit": {"operating_point": point, "details": True}}
    connection.request("POST", "/predict", json.dumps(body), {"authorization": "Bearer k"})
    answer = json.loads(connection.getresponse().read())
    connection.close()
    return answer[0]


def when(layer: int) -> str:
    return f"after layer {layer}" if layer else "before layer 1"


def test_a_wrong_key_is_refused_and_no_key_outlives_the_page(server: Server, page: Browser) -> None:
    page.open(f"http://127.0.0.1:{server.port}/ui")
    page.until(f"{FOCUS} === 'key'")
    assert page.value("[document.cookie, localStorage.length, sessionStorage.length]") == ["", 0, 0]
    page.type("wrong")
    page.press(*ENTER)
    page.until("document.getElementById('status').textContent === 'a key is needed'")
    page.until("!document.getElementById('key-form').hidden")
    assert page.value("document.getElementById('key').value") == ""
    assert {line.split(" (")[0].split(" http")[0] for line in page.console} == {
        "Failed to load resource: the server responded with a status of 401"
    }
    page.console.clear()


def test_a_text_climbs_and_the_slider_replays_it_without_the_server(server: Server, page: Browser) -> None:
    climb(page)
    early, full = classified(server, "2x"), classified(server, "full")
    layer = early["early_exit"]["exit_layer"]
    assert page.value(RESULT).startswith(f"{early['label']}, {when(layer)}: ")
    shown = exits(page)
    assert [item[0] for item in shown] == [
        "left" if exit["layer"] == layer else "beyond" if exit["layer"] > layer else "passed"
        for exit in full["early_exit"]["exits"]
    ]
    for item, exit in zip(shown, full["early_exit"]["exits"], strict=True):
        label, value = max(exit["outputs"].items(), key=lambda output: output[1])
        assert item[2].startswith(f"{label} {100 * value:.0f}")
    assert [item[3] for item in shown if item[0] == "beyond"] == ["not run"] * sum(
        item[0] == "beyond" for item in shown
    )
    left = next(item for item in shown if item[0] == "left")
    assert left[3].endswith(": leaves")

    before = [url for url in page.requests if url.endswith("explain")]
    page.press(*TAB)  # the button
    page.press(*TAB)  # a second text
    page.press(*TAB)
    assert page.value(FOCUS) == "point"
    page.press(*LEFT)
    assert page.value("document.getElementById('point').getAttribute('aria-valuetext')") == "full"
    assert page.value(RESULT).startswith(f"{full['label']}, {when(full['early_exit']['exit_layer'])}: the last exit.")
    assert "All layers ran." in page.value(RESULT)
    assert [item[0] for item in exits(page)] == ["passed"] * (len(shown) - 1) + ["left"]
    page.press(*RIGHT)
    page.press(*RIGHT)
    assert page.value("document.getElementById('point-name').firstChild.textContent") == "4x"
    assert [item[0] for item in exits(page)] == ["left"] + ["beyond"] * (len(shown) - 1)
    assert [url for url in page.requests if url.endswith("explain")] == before


def test_faults_stand_in_the_page_in_words(page: Browser) -> None:
    climb(page)
    page.value("document.getElementById('text').select()")
    page.type("   ")
    page.press(*ENTER)
    page.until(f"{RESULT} === 'the text is blank'")
    assert page.value("document.getElementById('result').className") == "fault"
    page.console[:] = [line for line in page.console if "400" not in line]


@pytest.mark.parametrize("width", [PHONE, DESK], ids=["phone", "desk"])
def test_nothing_is_wider_than_the_window(page: Browser, width: tuple[int, int]) -> None:
    page.size(*width)
    climb(page, "x" * 300)
    page.value("document.getElementById('pair-button').click()")
    page.value("document.querySelector('.names b').textContent = 'a long label, of several words, '.repeat(5)")
    assert page.value("document.documentElement.scrollWidth") == width[0]
    outside = (
        "[...document.querySelectorAll('body *')].filter((box) => box.getBoundingClientRect().right > innerWidth + 1)"
    )
    assert page.value(f"{outside}.map((box) => box.outerHTML.slice(0, 80))") == []


def test_colors_follow_the_system_and_motion_can_be_off(page: Browser) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    moving = "getComputedStyle(document.querySelector('#exits li')).animationName"
    page.size(*DESK, dark=True, still=False)
    climb(page)
    assert (page.value(paper), page.value(moving)) == ("rgb(20, 24, 28)", "climb")
    page.size(*DESK, dark=False, still=True)
    assert (page.value(paper), page.value(moving)) == ("rgb(255, 255, 255)", "none")


def test_a_screen_reader_has_a_name_for_all_that_can_be_used(page: Browser) -> None:
    climb(page)
    page.value("document.getElementById('pair-button').click()")
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    named = [
        (node["role"]["value"], node.get("name", {}).get("value"))
        for node in nodes
        if not node.get("ignored") and node.get("role", {}).get("value") in ("textbox", "button", "slider", "list")
    ]
    assert ("textbox", "Text") in named
    assert ("textbox", "Second text") in named
    assert ("button", "Only one text") in named
    assert ("slider", "Operating point") in named
    assert all(name for role, name in named if role != "list")
    assert page.value("document.getElementById('result').getAttribute('aria-live')") == "polite"
    pictures = page.value(
        "[...document.querySelectorAll('svg[role=img]')].map((box) => box.getAttribute('aria-label'))"
    )
    assert [words.split(" over")[0] for words in pictures] == ["Rows a second", "Latency"]


def test_live_traffic_is_that_of_the_clients(server: Server, page: Browser) -> None:
    for _ in range(10):
        assert server.ask(b'{"input":["good cat","bad"]}') == 200
    page.until("parseFloat(document.getElementById('requests').textContent) >= 0.9")
    assert page.value("document.getElementById('p50').textContent").endswith(" ms")
    shares = page.value("[...document.querySelectorAll('#layers .number')].map((box) => parseFloat(box.textContent))")
    assert sum(shares) == pytest.approx(100, abs=1)
    assert page.value("document.querySelectorAll('#rows-chart rect').length") > 0
    assert page.value("document.querySelector('#points .force .name').textContent") == "2x"


def test_a_point_that_drift_has_closed_says_so(server: Server, page: Browser) -> None:
    rows = texts(60, seed=3)
    for start in range(0, 60, 20):
        assert server.ask(json.dumps({"input": rows[start : start + 20]}).encode()) == 200
    page.until("document.querySelector('#points .closed:last-child') !== null")
    words = page.value("[...document.querySelectorAll('#points li')].map((item) => item.textContent)")
    assert "closed: its answers differ too often" in words[2]
    assert "certified: at least 99 % as at full depth" in words[2]
    assert "audited rows differ; so the agreement is at most" in words[2]
