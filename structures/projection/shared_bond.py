"""Three factors that all share one bond, as in BLAST: a start from eigenvectors, exact for weights without noise."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from structures.algebra.steps import Axes
from structures.projection.two_factor import arrange, matricise, truncated_svd
from structures.projection.views import TermView


@dataclass(frozen=True)
class _Roles:
    """T[(i p), (j q)] = sum over r of B[i, p, r] D[i, j, r] A[j, q, r]: block (i, j) is B_i diag(D_ij) A_j^T."""

    left: int  # B
    middle: int  # D
    right: int  # A
    i: Axes
    p: Axes
    j: Axes
    q: Axes
    bond: Axes


def from_eigenvectors(view: TermView, target: Tensor) -> list[Tensor] | None:
    """Factors whose term is `target` if the term can express it, generically; None where the axes are others.

    The row blocks' column spaces leave r x r cores K_ij = G_i diag(D_ij) H_j, and G_0 holds the eigenvectors of
    K_00 K_10^-1 K_11 K_01^-1; all else follows by solving. With noise it is a start like any other.
    """
    roles = _roles(view)
    if roles is None:
        return None
    size = view.structure.size
    rank, rows, columns, p, q = (
        math.prod(size[a] for a in axes) for axes in (roles.bond, roles.i, roles.j, roles.p, roles.q)
    )
    if rank > min(p, q) or min(rows, columns) < 2:
        return None
    average, axes = view.average(target)
    blocks = matricise(average, axes, roles.i, roles.j, roles.p, roles.q)
    u = truncated_svd(blocks.transpose(1, 2).reshape(rows, p, -1), rank)[0]
    v = truncated_svd(blocks.permute(1, 3, 0, 2).reshape(columns, q, -1), rank)[0]
    core = u.mT[:, None] @ blocks @ v[None]  # (i, j, r, r)
    inverse = torch.linalg.pinv(core[[1, 0], [0, 1]])
    vectors = torch.linalg.eig(core[0, 0] @ inverse[0] @ core[1, 1] @ inverse[1])[1]
    first = torch.where((vectors.imag.sum(0) < 0)[None], vectors.imag, vectors.real)  # both parts of a complex pair
    right = torch.linalg.pinv(first) @ core[0]  # (j, r, r): H_j, with D_0j = 1
    left = core[:, 0] @ torch.linalg.pinv(right[0])  # (i, r, r): G_i, with D_i0 = 1
    middle = (torch.linalg.pinv(left)[:, None] @ core @ torch.linalg.pinv(right)[None]).diagonal(dim1=-2, dim2=-1)
    found = {
        roles.left: (u @ left, roles.i + roles.p + roles.bond),
        roles.middle: (middle, roles.i + roles.j + roles.bond),
        roles.right: (v @ right.mT, roles.j + roles.q + roles.bond),
    }
    return [arrange(*found[f], view.factors[f], size) for f in range(3)]


def _roles(view: TermView) -> _Roles | None:
    if len(view.factors) != 3 or not view.injective:
        return None
    bond = tuple(a for a in view.factors[0] if a not in view.axes)
    if not bond or any({a for a in f if a not in view.axes} != set(bond) for f in view.factors):
        return None
    for middle in range(3):
        left, right = (f for f in range(3) if f != middle)
        between, one, other = (set(view.factors[f]) - set(bond) for f in (middle, left, right))
        if between <= one | other and not one & other:
            i, j = (tuple(a for a in view.held if a in between and a in side) for side in (one, other))
            p, q = (tuple(a for a in view.held if a in side and a not in between) for side in (one, other))
            return _Roles(left, middle, right, i, p, j, q, bond)
    return None
