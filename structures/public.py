"""All public names; with them torch comes. `structures` gives them one by one, and this module at the first."""

from structures.algebra.rank import mixing_depth as mixing_depth
from structures.backends.planned.measure import calibrate as calibrate
from structures.linear import StructuredLinear as StructuredLinear
from structures.models.config import SwapConfig as SwapConfig
from structures.models.covariance import collect_covariances as collect_covariances
from structures.models.distil import distil as distil
from structures.models.linears import to_linear as to_linear
from structures.models.rates import param_groups as param_groups
from structures.models.rates import shard_placement as shard_placement
from structures.models.routing import collect_routing as collect_routing
from structures.models.saved import load_swapped as load_swapped
from structures.models.saved import save_swapped as save_swapped
from structures.models.swap import swap as swap
from structures.models.table import SwapTable as SwapTable
from structures.models.transformers import quantization_config as quantization_config
from structures.models.width_check import coordinate_check as coordinate_check
from structures.options import fit_options as fit_options
from structures.projection.project import Projection as Projection
from structures.projection.project import from_linear as from_linear
from structures.projection.project import project as project
from structures.projection.project import project_factors as project_factors
from structures.registry import get as get
from structures.registry import load as load
from structures.registry import names as names
from structures.spec import Spec as Spec
from structures.structure import Structure as Structure

Plan = SwapTable  # what it was called before layer.plan() had the word
