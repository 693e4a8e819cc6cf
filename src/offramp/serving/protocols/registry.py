"""The wire formats that the server speaks, in the order in which OpenAPI lists them."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from types import ModuleType

PROTOCOLS = ("tei", "shared_paths", "vllm", "kserve", "oip", "openai", "systemone")
"""Modules of this package; each may have `ENDPOINTS` and `PAGES` (see `offramp.serving.endpoint`)."""


def protocol_modules() -> Iterator[ModuleType]:
    """Import the modules of the table, and yield them."""
    for name in PROTOCOLS:
        yield import_module(f"offramp.serving.protocols.{name}")
