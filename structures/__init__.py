"""Structured replacements of `nn.Linear`: one registry, each defined by an einsum, all behind one layer."""

from structures.analysis import mixing_depth
from structures.linear import StructuredLinear
from structures.registry import get, load, names
from structures.spec import Spec
from structures.structure import Structure

__all__ = ["Spec", "Structure", "StructuredLinear", "get", "load", "mixing_depth", "names"]
__version__ = "0.1.0"
