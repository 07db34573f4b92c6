"""The nearest product of two factors: one batched truncated SVD, whatever the axes mean."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from structures.algebra.steps import Axes
from structures.projection.views import TermView

MAX_SVD = 96  # matrices whose shorter side is longer go through the eigenvectors of their Gram matrix
ENTRIES = 2**22  # of matrices that are turned into float64 at a time


@dataclass(frozen=True)
class Cut:
    """How two groups of factors share the axes of the tensor that their product approximates.

    For each value of `batch`, the (rows, cols) matrix of the tensor is a product over `bond`: its rank is the bond's
    size, and blocks of different batch values share no parameter.
    """

    batch: Axes  # of the tensor, in both groups
    rows: Axes  # of the tensor, in the left group alone
    cols: Axes  # of the tensor, in the right group alone
    bond: Axes  # summed over: in both groups, not in the tensor

    @classmethod
    def of(cls, axes: Axes, left: Axes, right: Axes) -> Cut:
        return cls(
            batch=tuple(a for a in axes if a in left and a in right),
            rows=tuple(a for a in axes if a in left and a not in right),
            cols=tuple(a for a in axes if a in right and a not in left),
            bond=tuple(a for a in left if a in right and a not in axes),
        )

    @property
    def left(self) -> Axes:
        return self.batch + self.rows + self.bond

    @property
    def right(self) -> Axes:
        return self.batch + self.bond + self.cols


def matricise(tensor: Tensor, axes: Axes, *groups: Axes) -> Tensor:
    """A tensor over `axes` permuted to the groups' order, each group one dimension."""
    order = [axes.index(a) for group in groups for a in group]
    size = dict(zip(axes, tensor.shape, strict=True))
    return tensor.permute(order).reshape([math.prod(size[a] for a in group) for group in groups])


def arrange(matrix: Tensor, axes: Axes, wanted: Axes, size: Mapping[str, int]) -> Tensor:
    """A matrix whose dimensions hold `axes` one after another, as a tensor over `wanted`."""
    tensor = matrix.reshape([size[a] for a in axes])
    return tensor.permute([axes.index(a) for a in wanted]).contiguous()


def split(tensor: Tensor, axes: Axes, cut: Cut, size: Mapping[str, int]) -> tuple[Tensor, Tensor, Tensor]:
    """U (batch, rows, bond), S (batch, bond), V (batch, bond, cols): the nearest product, U and V orthonormal.

    Bonds wider than the matrices are filled with zeros.
    """
    matrices = matricise(tensor, axes, cut.batch, cut.rows, cut.cols)
    rank = math.prod(size[a] for a in cut.bond)
    kept = min(rank, *matrices.shape[1:])
    u, s, v = truncated_svd(matrices, kept)
    if kept < rank:
        more = rank - kept
        pad = torch.nn.functional.pad
        u, s, v = pad(u, (0, more)), pad(s, (0, more)), pad(v, (0, 0, 0, more))
    return u, s, v


def truncated_svd(matrices: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The first `rank` singular vectors and values of (batch, m, n) matrices, m and n at least rank.

    The product's squared error is the least one, to within 1e-14 of the matrix's squared norm (float32: 1e-7).
    """
    if min(matrices.shape[1:]) <= MAX_SVD:
        u, s, v = torch.linalg.svd(matrices, full_matrices=False)
        return u[..., :rank], s[..., :rank], v[..., :rank, :]
    if matrices.shape[1] > matrices.shape[2]:
        v, s, u = truncated_svd(matrices.mT, rank)
        return u.mT, s, v.mT
    # one float64 core, a matrix: 512 x 1376 at rank 64 takes 0.05 s, its SVD 0.23; 1024 x 2752 takes 0.32 and 1.86
    basis = torch.linalg.eigh(gram(matrices))[1][..., -rank:].to(matrices.dtype)
    for _ in range(2):  # a Gram matrix halves the digits; two steps of subspace iteration bring them back
        basis = torch.linalg.qr(matrices @ torch.linalg.qr(matrices.mT @ basis).Q).Q
    right, core = torch.linalg.qr(matrices.mT @ basis)
    v, s, u = torch.linalg.svd(core, full_matrices=False)
    return basis @ u.mT, s, (right @ v).mT


def gram(matrices: Tensor) -> Tensor:
    """M M^T of (batch, m, n) matrices in float64, some columns at a time."""
    batch, rows, _ = matrices.shape
    total = torch.zeros(batch, rows, rows, dtype=torch.float64, device=matrices.device)
    for part in torch.split(matrices, max(1, ENTRIES // (batch * rows)), dim=2):
        wide = part.double()
        total.baddbmm_(wide, wide.mT)
    return total


def is_product(view: TermView) -> bool:
    """Two factors, and no entry of W reached twice: one truncated SVD is exact."""
    return len(view.factors) == 2 and view.injective


def nearest_product(view: TermView, target: Tensor) -> list[Tensor]:
    """The two factors whose term is nearest to `target`, a tensor over the term's axes; sqrt(S) on either side.

    Source: Eckart & Young 1936; Van Loan & Pitsianis 1993 (the Kronecker case).
    """
    size = view.structure.size
    average, axes = view.average(target)
    cut = Cut.of(axes, *view.factors)
    return balanced(*split(average, axes, cut, size), cut, view)


def balanced(u: Tensor, s: Tensor, v: Tensor, cut: Cut, view: TermView) -> list[Tensor]:
    """U sqrt(S) and sqrt(S) V as the two factors of a term.

    Where S is zero the left one keeps U: were both zero, their gradients would be too, and training could not start.
    """
    size, largest = view.structure.size, float(s.max())
    empty = s <= largest * torch.finfo(s.dtype).eps
    root = torch.where(empty, 0, s.sqrt())
    kept = torch.where(empty, math.sqrt(largest) if largest else 1.0, root)
    left = arrange(u * kept[:, None, :], cut.left, view.factors[0], size)
    right = arrange(root[:, :, None] * v, cut.right, view.factors[1], size)
    return [left, right]


def rebalance(view: TermView, factors: list[Tensor]) -> list[Tensor]:
    """The same product, its singular values divided evenly between the two factors."""
    cut = Cut.of(view.held, *view.factors)
    left = matricise(factors[0], view.factors[0], cut.batch, cut.rows, cut.bond)
    right = matricise(factors[1], view.factors[1], cut.batch, cut.cols, cut.bond)
    (q, a), (p, b) = torch.linalg.qr(left), torch.linalg.qr(right)
    u, s, v = torch.linalg.svd(a @ b.mT, full_matrices=False)
    more = left.shape[2] - s.shape[1]
    pad = torch.nn.functional.pad
    return balanced(pad(q @ u, (0, more)), pad(s, (0, more)), pad(v @ p.mT, (0, 0, 0, more)), cut, view)


def with_orthonormal_ends(view: TermView, factors: list[Tensor]) -> list[Tensor]:
    """The same product, each factor that meets one other alone (a Tucker matrix's frames) with orthonormal columns.

    Fits in turn leave such factors ill-conditioned, so that their rounding grows in the product.
    """
    found, size = list(factors), view.structure.size
    for end, axes in enumerate(view.factors):
        bond = tuple(a for a in axes if a not in view.held)
        meets = [i for i, other in enumerate(view.factors) if i != end and set(axes) & set(other)]
        if not bond or len(meets) != 1 or set(axes) & set(view.factors[meets[0]]) != set(bond):
            continue
        near, rows = view.factors[meets[0]], tuple(a for a in axes if a not in bond)
        others = tuple(a for a in near if a not in bond)
        q, r = torch.linalg.qr(matricise(found[end], axes, rows, bond))
        if q.shape[1] == r.shape[1]:
            found[end] = arrange(q, rows + bond, axes, size)
            moved = r @ matricise(found[meets[0]], near, bond, others)
            found[meets[0]] = arrange(moved, bond + others, near, size)
    return found


def whitens(view: TermView) -> bool:
    """Whether an input covariance acts on one factor alone, so that the output error has a closed form too.

    All axes that are read, and the output axes that decide what is read, are then in that factor, and the other one
    holds no axis that is read.
    """
    return is_product(view) and _reader(view) is not None


def _reader(view: TermView) -> int | None:
    if any(not any(a in f for f in view.factors) for a in view.axes):
        return None
    for number, (factor, other) in enumerate(zip(view.factors, reversed(view.factors), strict=True)):
        if set(view.reads) | set(view.places) <= set(factor) and not set(view.reads) & set(other):
            return number
    return None


def nearest_whitened(view: TermView, product: Tensor, covariance: Tensor) -> list[Tensor]:
    """The two factors whose term T has the least output error, tr((E - T) C (E - T)^T).

    With C = L L^T at the columns that are read, the term's L^T-image is nearest to L^-1 (E C) there: an ordinary
    truncated SVD, then undone on the factor that reads.

    Args:
        product: E C, as a matrix (out_features, in_features).
        covariance: C, positive definite.
    """
    reader = _reader(view)
    assert reader is not None
    size = view.structure.size
    at, _ = view.covariance(covariance)
    count = math.prod(view.sizes(view.reads))
    root = torch.linalg.cholesky(at.reshape(-1, count, count))  # (places, reads, reads)
    white = solve_reads(root, view.read(product), view.axes, view.places, view.reads, size, upper=False)
    cut = Cut.of(view.axes, *view.factors)
    factors = balanced(*split(white, view.axes, cut, size), cut, view)
    held = view.factors[reader]
    factors[reader] = solve_reads(root.mT, factors[reader], held, view.places, view.reads, size, upper=True)
    return factors


def solve_reads(
    root: Tensor, tensor: Tensor, axes: Axes, places: Axes, reads: Axes, size: Mapping[str, int], *, upper: bool
) -> Tensor:
    """The triangular solve of a tensor over `axes` along `reads`, at each of the places; root is (places, n, n)."""
    others = tuple(a for a in axes if a not in places and a not in reads)
    columns = matricise(tensor, axes, places, reads, others)
    solved = torch.linalg.solve_triangular(root, columns, upper=upper)
    return arrange(solved, places + reads + others, axes, size)
