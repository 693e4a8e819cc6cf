"""Register offramp's models with transformers' Auto classes on `import offramp`, without loading torch.

`AutoModelForSequenceClassification.from_pretrained(folder)` and `pipeline(...)` must work after a bare
`import offramp`, and `offramp --help` must not load torch, which takes seconds. So the registration, which needs both,
waits until transformers loads its Auto classes: a finder on `sys.meta_path` loads that one module as usual and
registers right after.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # which imports the packages of resources and of mail: 20 ms of every start
    from importlib.abc import Loader

AUTO_CLASSES = "transformers.models.auto.modeling_auto"


def _register() -> None:
    import_module("offramp.model.modeling")  # these register themselves at their ends
    import_module("offramp.model.backbones.resnet")


class _AfterLoading:
    """A loader that runs another loader, then registers offramp's models."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        _register()


class _Finder:
    """A finder of transformers' module of Auto classes, used once."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != AUTO_CLASSES:
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _AfterLoading(spec.loader)  # type: ignore[assignment]  # a loader by its methods
        return spec


def register_with_transformers() -> None:
    """Register now if transformers' Auto classes are loaded, else as soon as they are."""
    if AUTO_CLASSES in sys.modules:
        _register()
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
