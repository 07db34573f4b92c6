"""What waits for transformers to be imported, without torch, to have it know the method of `transformers`."""

from __future__ import annotations

import importlib.util
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

PLACE = "transformers.quantizers.auto"  # the module that keeps the methods, by their names in a config.json


def register_when_imported() -> None:
    """Have transformers know the method `structures.models.transformers`: now, or as soon as it is imported."""
    if PLACE in sys.modules:
        _register()
    elif not any(isinstance(finder, _Waiting) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Waiting())


class _Waiting(MetaPathFinder):
    """Finds nothing, but for one module, which it lets be imported as it is; then the method is registered."""

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != PLACE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return None
        run = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            run(module)
            _register()

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _register() -> None:
    from structures.models.transformers import register

    register()
