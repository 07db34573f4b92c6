"""Each structure's matrix, written from its paper with loops, block matrices and permutations: no einsum anywhere.

Independent of `structures`, which is not imported. Every function takes factors shaped as the registry writes them (its
letters stand in the comment of each argument list) and returns W of shape (out_features, in_features) in float64.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import reduce

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import block_diag, hadamard

Matrix = NDArray[np.float64]
Sizes = Mapping[str, int]


def perfect_shuffle(n: int, m: int) -> Matrix:
    """The permutation matrix P with (P x)[(n m)] = x[(m n)]: it gathers a vector at stride n into n runs of m."""
    p = np.zeros((n * m, n * m))
    for j in range(n):
        for k in range(m):
            p[j * m + k, k * n + j] = 1.0
    return p


def dense(w: Matrix) -> Matrix:
    """nn.Linear; w (x, y)."""
    return w.T


def block_diagonal(w: Matrix) -> Matrix:
    """One block a run of features; w (n, i, o)."""
    return block_diag(*(block.T for block in w))


def low_rank(down: Matrix, up: Matrix) -> Matrix:
    """U V; down (x, r), up (r, y)."""
    return up.T @ down.T


def dyad(variant: str, w1: Matrix, w2: Matrix) -> Matrix:
    """BD1 + S^T BD2 P: the second block-diagonal part after a stride-n gather, before a stride-n scatter, or both.

    w1, w2 (n, i, o). Source: asappresearch/dyad (IT), sarin1991/Blocks (DT); OT by its name.
    """
    n, i, o = w2.shape
    gather = perfect_shuffle(n, i) if variant in ("it", "dt") else np.eye(n * i)
    scatter = perfect_shuffle(n, o).T if variant in ("ot", "dt") else np.eye(n * o)
    return block_diagonal(w1) + scatter @ block_diagonal(w2) @ gather


def dyad_entries(variant: str, w1: Matrix, w2: Matrix) -> Matrix:
    """The same, entry by entry."""
    n, i, o = w1.shape
    w = np.zeros((n * o, n * i))
    for j in range(n):
        for k in range(o):
            for c in range(i):
                w[j * o + k, j * i + c] += w1[j, c, k]
                row = k * n + j if variant in ("ot", "dt") else j * o + k
                column = c * n + j if variant in ("it", "dt") else j * i + c
                w[row, column] += w2[j, c, k]
    return w


def kronecker_sparse_support(a: int, b: int, c: int, d: int) -> NDArray[np.bool_]:
    """Where a Kronecker-sparse factor (a, b, c, d) is not zero: I_a (x) ones(b, c) (x) I_d."""
    return np.kron(np.kron(np.eye(a), np.ones((b, c))), np.eye(d)) > 0


def kronecker_sparse(w: Matrix) -> Matrix:
    """Its support filled row by row; w (a, b, c, d)."""
    support = kronecker_sparse_support(*w.shape)
    matrix = np.zeros(support.shape)
    matrix[support] = w.transpose(0, 1, 3, 2).ravel()  # rows (a b d), and along each row its c entries
    return matrix


def monarch(w1: Matrix, w2: Matrix) -> Matrix:
    """K2 K1: a block-diagonal factor, then a factor of diagonal blocks, (k, q, p, 1) and (1, s, r, l).

    w1 (k, p, q), w2 (l, r, s); k q = r l, whatever divides what.
    """
    return kronecker_sparse(w2.transpose(2, 1, 0)[None]) @ kronecker_sparse(w1.transpose(0, 2, 1)[..., None])


def monarch_reread(w1: Matrix, w2: Matrix) -> Matrix:
    """The published code's loops: h[(k q)] is read again as h[(r l)], y written at (s l).

    Here w1 (k, q, p) and w2 (l, s, r) are laid out as published; r l = k q. Source: HazyResearch/fly.
    """
    k, q, p = w1.shape
    ell, s, _ = w2.shape
    w = np.zeros((s * ell, k * p))
    for m in range(k * q):
        block, channel = divmod(m, q)
        r, j = divmod(m, ell)
        w[j::ell, block * p : (block + 1) * p] += np.outer(w2[j, :, r], w1[block, channel])
    return w


def kronecker(a: Matrix, b: Matrix) -> Matrix:
    """kron(B, A); a (d, a), b (e, b). Source: Van Loan & Pitsianis 1993."""
    return np.kron(b, a)


def tensor_train(*cores: Matrix) -> Matrix:
    """Sums of Kronecker products over the bonds, one core after another; core t (r[t], i[t], o[t], r[t+1])."""
    bonds = [np.ones((1, 1))]  # one matrix for each value of the open bond
    for core in cores:
        bonds = [
            sum(np.kron(left, core[r, :, :, s].T) for r, left in enumerate(bonds))  # type: ignore[misc]
            for s in range(core.shape[3])
        ]
    (matrix,) = bonds
    return matrix


def btt(right: Matrix, left: Matrix) -> Matrix:
    """Block (f, g) is a product of rank r; right (g, a, f, r), left (f, g, r, e). Source: arXiv:2406.06248."""
    g, _, f, _ = right.shape
    return np.block([[left[u, v].T @ right[v, :, u, :].T for v in range(g)] for u in range(f)])


def butterfly_factor(w: Matrix) -> Matrix:
    """One sparse factor: support I (x) ones(o, i) (x) I (x) ones(p, p); w (before, i, p, o, p, after)."""
    before, i, p, o, _, after = w.shape
    matrix = np.zeros((before, o, after, p, before, i, after, p))
    for u in range(before):
        for v in range(after):
            for column in range(i):
                for row in range(o):
                    matrix[u, row, v, :, u, column, v, :] = w[u, column, :, row, :, v].T
    return matrix.reshape(before * o * after * p, before * i * after * p)


def butterfly(*factors: Matrix) -> Matrix:
    """The product of its sparse factors, the last one leftmost; factor t (o[:t], i[t], p, o[t], p, i[t+1:])."""
    sparse = []
    for t, factor in enumerate(factors):
        before, after = math.prod(factor.shape[:t]), math.prod(factor.shape[t + 4 :])
        sparse.append(butterfly_factor(factor.reshape(before, *factor.shape[t : t + 4], after)))
    return reduce(lambda product, factor: factor @ product, sparse)


def pixelfly(blocks: Matrix, down: Matrix | None = None, up: Matrix | None = None) -> Matrix:
    """Blocks (u, u xor 0, 1, 2, 4, ...), plus U V; blocks (u, k, i, o), down (x, r), up (r, y)."""
    n, strides, i, o = blocks.shape
    w = np.zeros((n * o, n * i))
    for u in range(n):
        for k, stride in enumerate([0, 1, 2, 4, 8, 16, 32, 64][:strides]):
            v = u ^ stride
            w[u * o : (u + 1) * o, v * i : (v + 1) * i] += blocks[u, k].T
    return w if down is None or up is None else w + low_rank(down, up)


def two_factor_einsum(first: Matrix, second: Matrix) -> Matrix:
    """Block (f, g) is a sum of r Kronecker products; first (f, d, r, g, a), second (f, e, r, g, b)."""
    f, _, r, g, _ = first.shape
    return np.block(
        [
            [sum(np.kron(second[u, :, s, v, :], first[u, :, s, v, :]) for s in range(r)) for v in range(g)]
            for u in range(f)
        ]
    )


def blast(c: Matrix, d: Matrix, b: Matrix) -> Matrix:
    """Block (i, j) is B_i diag(D_ij) C_j; c (j, q, r), d (i, j, r), b (i, r, p). Source: arXiv:2410.21262."""
    return np.block([[b[i].T @ np.diag(d[i, j]) @ c[j].T for j in range(d.shape[1])] for i in range(d.shape[0])])


def block_dense(v: Matrix, u: Matrix) -> Matrix:
    """U blockdiag(V); v (b, i, r), u (b, r, y). Source: arXiv:2406.16450."""
    return np.hstack([block.T for block in u]) @ block_diagonal(v)


def kaleidoscope(*factors: Matrix) -> Matrix:
    """A butterfly times a mirrored one; the first half of the factors (m[:t], i[t], m[t], i[t+1:]), the second
    (m[:t], m[t], o[t], o[t+1:]), of which the last is applied first."""
    depth = len(factors) // 2
    whole = np.eye(math.prod(factors[0].shape[:1] + factors[0].shape[2:]))
    order = [*range(depth), *range(2 * depth - 1, depth - 1, -1)]
    for number in order:
        t, factor = number % depth, factors[number]
        before, after = math.prod(factor.shape[:t]), math.prod(factor.shape[t + 2 :])
        whole = _sparse(factor.reshape(before, *factor.shape[t : t + 2], after)) @ whole
    return whole


def _sparse(w: Matrix) -> Matrix:
    """The sparse matrix of a factor (before, in, out, after): a Kronecker-sparse one, its two sides swapped."""
    return kronecker_sparse(w.transpose(0, 2, 1, 3))


def tucker(u1: Matrix, u2: Matrix, core: Matrix, v1: Matrix, v2: Matrix) -> Matrix:
    """A core between two Kronecker products; u1 (i, p), u2 (j, q), core (p, q, r, s), v1 (r, k), v2 (s, l)."""
    p, q, r, s = core.shape
    return np.kron(v1, v2).T @ core.reshape(p * q, r * s).T @ np.kron(u1, u2).T


def cp(a: Matrix, b: Matrix, c: Matrix, d: Matrix) -> Matrix:
    """A sum of outer products of Kronecker vectors; a (i, r), b (j, r), c (k, r), d (l, r)."""
    return sum(np.outer(np.kron(c[:, r], d[:, r]), np.kron(a[:, r], b[:, r])) for r in range(a.shape[1]))  # type: ignore[return-value]


def lokr(c: Matrix, b: Matrix, a: Matrix) -> Matrix:
    """kron(C, B A); c (a, d), b (b, r), a (r, e). Source: arXiv:2309.14859."""
    return np.kron(c.T, low_rank(b, a))


def loha(a: Matrix, b: Matrix, c: Matrix, d: Matrix) -> Matrix:
    """(B A) times (D C), entry by entry; a (x, r), b (r, y), c (x, s), d (s, y). Source: arXiv:2108.06098."""
    return low_rank(a, b) * low_rank(c, d)


def group_and_shuffle(right: Matrix, left: Matrix) -> Matrix:
    """L P R; right (k, p, q), left (l, r, s). P gathers what R has written at the stride of L's blocks."""
    ell, r, _ = left.shape
    return block_diagonal(left) @ perfect_shuffle(ell, r) @ block_diagonal(right)


def boft(*factors: Matrix) -> Matrix:
    """The last factor mixes neighbouring blocks, those before it 2, 4, ... apart; each (g, high, bit, low, c, bit, c):
    bits above and below its own, of chunks c long."""
    dense = np.eye(1)
    for t in reversed(range(len(factors))):
        shape = factors[t].shape
        above, below = int(np.prod(shape[1 : 1 + t])), int(np.prod(shape[2 + t : -3]))
        g, bit, c, new, d = shape[0], shape[1 + t], *shape[-3:]
        one = factors[t].reshape(g * above, bit, below, c, new * d)
        made = []
        for block in one:  # (bit low c) to (low bit c), a block for each of low, and back
            blocks = block_diag(*(block[:, k].reshape(bit * c, new * d).T for k in range(below)))
            gather = np.kron(perfect_shuffle(below, bit), np.eye(c))
            scatter = np.kron(perfect_shuffle(new, below), np.eye(d))
            made.append(scatter @ blocks @ gather)
        step = block_diag(*made)
        dense = step if dense.size == 1 else step @ dense
    return dense


def fastfood(b: Matrix, g: Matrix, s: Matrix) -> Matrix:
    """S H G P H B; diagonals b, g, s (n,). H is Sylvester's, orthonormal; P has the order of a raw PCG64 stream."""
    n = len(b)
    h, p = hadamard(n) / np.sqrt(n), np.zeros((n, n))
    p[np.argsort(np.random.PCG64([2, 0, 0]).random_raw(n), kind="stable"), np.arange(n)] = 1
    return np.diag(s) @ h @ np.diag(g) @ p @ h @ np.diag(b)


# name -> f(sizes of the axes, factors) -> W. The sizes are for an entry with an axis that no factor has.
DENSE_FORMS: dict[str, Callable[[Sizes, Sequence[Matrix]], Matrix]] = {
    "dense": lambda sizes, factors: dense(*factors),
    "block_diagonal": lambda sizes, factors: block_diagonal(*factors),
    "low_rank": lambda sizes, factors: low_rank(*factors),
    "dyad_it": lambda sizes, factors: dyad("it", *factors),
    "dyad_ot": lambda sizes, factors: dyad("ot", *factors),
    "dyad_dt": lambda sizes, factors: dyad("dt", *factors),
    "monarch": lambda sizes, factors: monarch(*factors),
    "kronecker": lambda sizes, factors: kronecker(*factors),
    "tensor_train": lambda sizes, factors: tensor_train(*factors),
    "btt": lambda sizes, factors: btt(*factors),
    "butterfly": lambda sizes, factors: butterfly(*factors),
    "pixelfly": lambda sizes, factors: pixelfly(*factors),
    "kronecker_sparse": lambda sizes, factors: kronecker_sparse(*factors),
    "einsum": lambda sizes, factors: two_factor_einsum(*factors),
    "blast": lambda sizes, factors: blast(*factors),
    "block_dense": lambda sizes, factors: block_dense(*factors),
    "kaleidoscope": lambda sizes, factors: kaleidoscope(*factors),
    "deformable_butterfly": lambda sizes, factors: reduce(lambda w, f: f @ w, map(kronecker_sparse, factors)),
    "kronecker_sparse_chain": lambda sizes, factors: kronecker_sparse(factors[1]) @ kronecker_sparse(factors[0]),
    "tucker": lambda sizes, factors: tucker(*factors),
    "cp": lambda sizes, factors: cp(*factors),
    "lokr": lambda sizes, factors: lokr(*factors),
    "loha": lambda sizes, factors: loha(*factors),
    "group_and_shuffle": lambda sizes, factors: group_and_shuffle(*factors),
    "boft": lambda sizes, factors: boft(*factors),
    "fastfood": lambda sizes, factors: fastfood(*factors),
}

# Entries with a gate have no one matrix: their experts are written out by hand instead.
WITHOUT: dict[str, str] = {
    name: "experts are chosen for every token: experts_by_hand.py" for name in ("btt_moe", "low_rank_moe", "dense_moe")
}
