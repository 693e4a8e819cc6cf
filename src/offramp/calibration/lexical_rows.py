"""Rows that fitted the exit before the first layer: it answers them far better than others."""

from __future__ import annotations

import logging

from offramp.types.trace import Trace

MOST_SHARED = 0.05
"""Share of the rows with texts that something was fitted on: texts recur by chance, more of them were trained on."""

log = logging.getLogger("offramp")


def lexical_rows_text(trace: Trace) -> str:
    """Say how many rows of a trace fitted its exit before the first layer; empty where it has none, or they are few."""
    if trace.fit_rows is None or trace.layer_numbers[0] > 0:
        return ""
    rows = int(trace.fit_rows.sum())
    if rows <= MOST_SHARED * len(trace):
        return ""
    return f"{rows} of {len(trace)} rows fitted the exit before the first layer, which answers them better than others"


def warn_of_lexical_rows(trace: Trace) -> None:
    """Log a warning where thresholds are chosen on rows that fitted the exit before the first layer."""
    if text := lexical_rows_text(trace):
        log.warning("%s: thresholds chosen on them lose more there", text)
