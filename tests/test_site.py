"""The site builds without a warning, loads nothing from elsewhere, and can be read on a phone."""

import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from support.browser import Browser, browsing, chromium

ROOT = Path(__file__).parent.parent
TOO_WIDE = """(width => [...document.images]
    .filter(image => !image.naturalWidth || image.getBoundingClientRect().right > width)
    .map(image => image.src)
    .concat(document.documentElement.scrollWidth > width ? [`page: ${document.documentElement.scrollWidth}`] : [])
)"""  # not innerWidth: on a phone it grows with what is too wide


def build(folder: Path, builder: str) -> None:
    """Build the site; a warning fails."""
    if find_spec("sphinx") is None:
        pytest.skip('needs pip install ".[docs]"')
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", builder, "-c", "docs", "."]
    built = subprocess.run([*command, str(folder / "site")], cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr


def test_every_page_is_read_and_every_link_resolved_without_a_warning(tmp_path: Path) -> None:
    build(tmp_path, "dummy")  # all but the writing of HTML, which takes as long


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    folder = tmp_path_factory.mktemp("html")
    build(folder, "html")
    return folder / "site"


@pytest.mark.slow
def test_the_site_has_a_page_for_each_page_of_docs(site: Path) -> None:
    pages = [page.relative_to(ROOT) for page in (ROOT / "docs").rglob("*.md") if "_build" not in page.parts]
    assert [page for page in pages if not (site / page.with_suffix(".html")).is_file()] == []
    assert (site / "index.html").is_file()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if chromium() is None:
        pytest.skip("needs Chromium")
    with browsing(tmp_path_factory.mktemp("profile")) as tab:
        yield tab


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
def test_no_page_scrolls_sideways_and_none_loads_from_elsewhere(site: Path, browser: Browser, width: int) -> None:
    browser.size(width, 800)
    wide = {}
    for page in sorted({*site.rglob("*.html")} - {site / "index.html"}):  # that one leads on at once
        browser.open(page.as_uri())
        if found := browser.value(f"{TOO_WIDE}({width})"):
            wide[page.relative_to(site).as_posix()] = found
    assert wide == {}
    assert [url for url in browser.requests if not url.startswith(("file:", "data:"))] == []
    assert browser.console == []
