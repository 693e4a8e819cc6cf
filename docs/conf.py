"""Settings of the documentation site: `make docs`, or `python -m sphinx -W -c docs . docs/_build/html`.

The source folder is the root of the project, so that links between docs/, benchmarks/results/ and the README lead to
the same pages on disk and in the site.
"""

import re
from itertools import groupby
from pathlib import Path
from urllib.parse import quote

import click
from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform
from sphinx.writers.html5 import HTML5Translator

import offramp

ROOT = Path(__file__).parent.parent
PAGES = ("docs", "benchmarks", "README.md", "CHANGELOG.md", "CONTRIBUTING.md")

project = "offramp"
author = "The offramp authors"
copyright = author
version = release = offramp.__version__
root_doc = "docs/index"
language = "en"

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_click"]
include_patterns = ["docs/**", "benchmarks/README.md", "benchmarks/results/**.md", *PAGES[2:]]
exclude_patterns = [path.name for path in ROOT.iterdir() if path.name not in PAGES]
exclude_patterns += [
    "docs/_build",
    "benchmarks/results/**_reading.md",
]  # the readings stand in the pages of results too

myst_heading_anchors = 4  # a link to a heading that is not there fails the build
nb_execution_mode = "off"  # the notebook holds its output; a test runs it

default_role = "literal"  # docstrings write `names`
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 88
napoleon_use_ivar = True
napoleon_custom_sections = ["Relations", "Source"]

html_theme = "furo"
html_title = f"offramp {release}"
html_extra_path = ["_site"]
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_copyright = False


OPTION = re.compile(r"`[^`]*`|(?P<option>(?<![\w-])--[a-z][\w-]*)")  # not inside of code
OPENED = (".html", ".json", ".png")  # by a browser; the site has a copy of each of these files that a page links to


class LocalFiles(SphinxTransform):
    """Show a link to a folder, or to a file of code, as its path: the site has no page for it."""

    default_priority = 5  # before the links are looked up

    def apply(self) -> None:
        """Replace the nodes of such links."""
        links = self.document.findall(
            lambda node: isinstance(node, (addnodes.pending_xref, addnodes.download_reference))
        )
        for link in list(links):
            path = self._path(link)
            if path.exists() and path.is_relative_to(ROOT) and path != ROOT and path.suffix not in OPENED:
                link.replace_self(_named(link.astext(), path.relative_to(ROOT).as_posix()))

    def _path(self, link: nodes.Element) -> Path:
        """Return the path that a link leads to; ROOT where it leads to a page, or to a place in this one."""
        target = link.get("reftarget", "").partition("#")[0]
        if link.get("refdomain") == "doc":  # a Markdown file, by its path from ROOT, without suffix
            return ROOT if target in self.env.found_docs else ROOT / f"{target}.md"
        return (Path(self.document["source"]).parent / target).resolve() if target else ROOT


def _named(text: str, path: str) -> nodes.inline:
    """Return the text of a link with the path, once."""
    literal = nodes.literal(path, path)
    return (
        nodes.inline("", "", literal)
        if text.strip("/") in path
        else nodes.inline("", f"{text} (", literal, nodes.Text(")"))
    )


def open_in_browser(writer: HTML5Translator, link: addnodes.download_reference) -> None:
    """Write a link to a local file; Sphinx's own would save the file in place of showing it."""
    href = f"{writer.builder.dlpath}/{quote(link['filename'])}"
    writer.body.append(writer.starttag(link, "a", "", href=href, CLASS="reference internal"))


def help_as_rst(app: Sphinx, context: click.Context, lines: list[str]) -> None:
    """Make code of the options and of the examples, which sphinx-click makes lines that begin with a bar."""
    result: list[str] = []
    for is_example, group in groupby(lines, key=lambda line: line.startswith("| ")):
        if is_example:
            result += [".. code-block:: bash", "", *(f"   {line[2:]}" for line in group), ""]
        else:
            result += [line if line.startswith("..") else OPTION.sub(_literal, line) for line in group]
    lines[:] = result


def _literal(match: re.Match[str]) -> str:
    return f"``{match[0]}``" if match["option"] else match[0]


def setup(app: Sphinx) -> None:
    """Register what is above."""
    app.add_transform(LocalFiles)
    link = (open_in_browser, lambda writer, link: writer.body.append("</a>"))
    app.add_node(addnodes.download_reference, override=True, html=link)
    for part in ("description", "options"):
        app.connect(f"sphinx-click-process-{part}", help_as_rst)
