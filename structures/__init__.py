"""Structured replacements of `nn.Linear`: one registry, each defined by an einsum, all behind one layer."""

from structures.algebra.rank import mixing_depth
from structures.backends.planned.measure import calibrate
from structures.linear import StructuredLinear
from structures.models.config import SwapConfig
from structures.models.covariance import collect_covariances
from structures.models.distil import distil
from structures.models.linears import to_linear
from structures.models.rates import param_groups, shard_placement
from structures.models.routing import collect_routing
from structures.models.saved import load_swapped, save_swapped
from structures.models.swap import swap
from structures.models.table import SwapTable
from structures.models.transformers import quantization_config, register_when_imported
from structures.models.width_check import coordinate_check
from structures.options import fit_options
from structures.projection.project import Projection, from_linear, project, project_factors
from structures.registry import get, load, names
from structures.spec import Spec
from structures.structure import Structure

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
Plan = SwapTable  # what it was called before layer.plan() had the word
register_when_imported()  # so that transformers' from_pretrained reads what save_pretrained wrote
__version__ = "0.1.0"
