"""A picture of three charts of the report: reliability of every exit, similarity of tokens, expected and measured time.

    offramp demo
    offramp report offramp-demo --data helpdesk -o docs/example_report.html
    python benchmarks/report_pictures.py

Opens the page in a Chromium without a window and shows the sections of these charts alone. Writes
`docs/pictures/report.png`. Seconds; needs a Chromium. The figures are those of the page, which has its command.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from support.browser import browsing  # noqa: E402

WIDTH = 900
CHARTS = ("times", "reliability", "similarity")
ALONE = """
[...document.querySelectorAll("main > *")].forEach(part => {
  const shown = [...part.querySelectorAll("[data-chart]")].some(place => NAMES.some(
    name => place.dataset.chart.startsWith(name)));
  part.style.display = shown ? "" : "none";
});
document.querySelector("[data-chart=confidence]").closest("figure").style.display = "none";
document.querySelectorAll("h2").forEach(head => head.style.marginTop = "1rem");
"""


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "example_report.html")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "pictures" / "report.png")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile, browsing(Path(profile)) as tab:
        tab.size(WIDTH, 900)
        tab.open(chosen.page.resolve().as_uri())
        tab.until("[...document.querySelectorAll('[data-chart]')].every(place => place.querySelector('svg'))")
        tab.value(f"const NAMES = {list(CHARTS)}; {ALONE}")
        tab.size(WIDTH, tab.value("Math.ceil(document.querySelector('main').getBoundingClientRect().height) + 8"))
        time.sleep(0.5)
        tab.picture(chosen.output)
    print(chosen.output, f"{chosen.output.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
