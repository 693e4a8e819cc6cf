"""The table of the papers' comparisons."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from offramp.registry import load

if TYPE_CHECKING:
    from offramp.studies.spec import Study

STUDIES = {
    "badge": "offramp.studies.papers.badge:STUDY",
    "berxit": "offramp.studies.papers.berxit:STUDY",
    "mpee": "offramp.studies.papers.mpee:STUDY",
    "pabee": "offramp.studies.papers.pabee:STUDY",
    "pcee": "offramp.studies.papers.pcee:STUDY",
}


def load_study(name: str) -> Study:
    """Load a paper's comparison by name, e.g. "pcee".

    Raises:
        UnknownName: no such study.
    """
    return cast("Study", load(STUDIES, name))
