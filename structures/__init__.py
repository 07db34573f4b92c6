"""Structured replacements of `nn.Linear`: one registry, each defined by an einsum, all behind one layer."""

from structures.analysis import mixing_depth
from structures.backends.planned.measure import calibrate
from structures.coordinates import coordinate_check
from structures.distil import distil
from structures.experts import collect_routing
from structures.fit import fit_options
from structures.layers import to_linear
from structures.linear import StructuredLinear
from structures.plan import Plan
from structures.project import Projection, from_linear, project, project_factors
from structures.projection.covariance import collect_covariances
from structures.registry import get, load, names
from structures.saved import load_swapped, save_swapped
from structures.spec import Spec
from structures.structure import Structure
from structures.swap import swap
from structures.training import param_groups, shard_placement

__all__ = [
    "Plan",
    "Projection",
    "Spec",
    "Structure",
    "StructuredLinear",
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
    "save_swapped",
    "shard_placement",
    "swap",
    "to_linear",
]
__version__ = "0.1.0"
