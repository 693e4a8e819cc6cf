"""Settings of the documentation site: `make docs`, or `python -m sphinx -W -c docs . docs/_build/html`.

The source folder is the root of the project, so that links between docs/, benchmarks/results/ and the README lead to
the same pages on disk and in the site.
"""

from pathlib import Path

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform

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
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 88
napoleon_custom_sections = ["Relations", "Source"]

html_theme = "furo"
html_title = f"offramp {release}"
html_extra_path = ["_site"]
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_copyright = False


class LocalFiles(SphinxTransform):
    """Show a link to a folder, or to a file of code, as its path: the site has no page for it."""

    default_priority = 5  # before the links are looked up

    def apply(self) -> None:
        """Replace the nodes of such links."""
        for link in list(self.document.findall(addnodes.pending_xref)):
            path = self._path(link.get("reftarget", ""))
            if path is not None and path.is_dir():
                link.replace_self(self._named(link, path))
        for link in list(self.document.findall(addnodes.download_reference)):
            path = self._path(link["reftarget"])
            if path is not None and path.suffix not in (".html", ".json"):
                link.replace_self(self._named(link, path))

    def _path(self, target: str) -> Path | None:
        path = (Path(self.document["source"]).parent / target.partition("#")[0]).resolve()
        return path if target and path.exists() and path.is_relative_to(ROOT) else None

    def _named(self, link: nodes.Element, path: Path) -> nodes.inline:
        name = path.relative_to(ROOT).as_posix()
        text = link.astext()
        shown = [nodes.literal(name, name)]
        return nodes.inline(
            "", "", *([nodes.Text(f"{text} ("), *shown, nodes.Text(")")] if text not in name else shown)
        )


def setup(app: Sphinx) -> None:
    """Register what is above."""
    app.add_transform(LocalFiles)
