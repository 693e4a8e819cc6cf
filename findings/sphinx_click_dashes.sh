#!/usr/bin/env bash
# sphinx-click turns the options of a command's help into dashes.
#
# Expected: the page of a command shows its help as the terminal does. A paragraph after \b, which click leaves as it is,
#   is where commands put their examples, so a reader can copy it from the page.
# Observed: help goes into the page as prose. Sphinx's smart quotes then make one dash of the two hyphens of an option:
#   "--data" is shown as an en dash and "data", also in the paragraph after \b, which becomes a block of lines and not of
#   code. Sphinx spares code, and the list of options has it right. The text builder shows the hyphens, so a look at its
#   output finds nothing.
# Where it matters: reference pages of command lines. What is copied from them fails as a wrong argument.
# Remedy: turn such blocks into code on the event "sphinx-click-process-description", or set `smartquotes = False`.
# Source: met while building a reference of commands; sphinx-click's documentation names its events, and Sphinx's the
#   option `smartquotes`, but not the two together.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet sphinx==9.0.4 sphinx-click==6.2.0 click==8.4.0
mkdir pages
echo 'extensions = ["sphinx_click"]' > pages/conf.py
cat > pages/counting.py <<'PYTHON'
import click


@click.command()
@click.option("--limit", help="Rows at most.")
def count(limit):
    """Count the rows that --data names.

    \b
    count --data rows.csv --limit 3
    """
PYTHON
printf 'Reference\n=========\n\n.. click:: counting:count\n   :prog: count\n' > pages/index.rst
for builder in text html; do
    PYTHONPATH=pages env/bin/python -m sphinx -q -b "$builder" pages "built-$builder"
done
env/bin/python - <<'PYTHON'
import re
from importlib.metadata import version
from pathlib import Path

html = Path("built-html/index.html").read_text(encoding="utf-8")
page = re.sub(r"<[^>]+>", "", html)
text = Path("built-text/index.txt").read_text(encoding="utf-8")
shown = [line.strip() for line in page.splitlines() if "rows.csv" in line or "names" in line]
print("sphinx", version("sphinx"), "sphinx-click", version("sphinx-click"))
print("in the page:", *shown, sep="\n  ")
assert shown == ["Count the rows that \N{EN DASH}data names.", "count \N{EN DASH}data rows.csv \N{EN DASH}limit 3"]
assert "count --data rows.csv --limit 3" in text
assert "--limit" in page  # in the list of options
PYTHON
echo "as described"
