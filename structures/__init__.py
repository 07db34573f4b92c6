"""Structured replacements of `nn.Linear`: one registry, each defined by an einsum, all behind one layer."""

# ruff: noqa: F405  # the names of __all__ are those of public
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from structures.models.waiting import register_when_imported

if TYPE_CHECKING:
    from structures.public import *  # noqa: F403

__all__ = [
    "Projection",
    "Spec",
    "Structure",
    "StructuredLinear",
    "SwapConfig",
    "SwapTable",
    "calibrate",
    "collect_covariances",
    "collect_routing",
    "coordinate_check",
    "distil",
    "fit_options",
    "from_linear",
    "get",
    "load",
    "load_swapped",
    "mixing_depth",
    "names",
    "param_groups",
    "project",
    "project_factors",
    "quantization_config",
    "save_swapped",
    "shard_placement",
    "swap",
    "to_linear",
]

register_when_imported()  # so that transformers' from_pretrained reads what save_pretrained wrote
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """A public name or a room, when it is first asked for: `import structures.reading` and the like bring no torch."""
    if name in (*__all__, "Plan"):
        from structures import public

        found = globals()[name] = getattr(public, name)
        return found
    if not name.startswith("_") and find_spec(f"{__name__}.{name}"):
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
