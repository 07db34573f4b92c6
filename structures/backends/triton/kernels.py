"""The Triton kernels: one product over digits for every step of every structure, its form for interleaved blocks, and a
factor's gradient.

`D`, a constant, is `AffineStep.constants`: sizes, then where in it each list of digits begins. Nothing here knows a
structure, and every offset but a gather's is arithmetic of constants.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, assignment"
from __future__ import annotations

import triton
import triton.language as tl

# positions in D: batch entries, rows of a token, contracted, cols, the lists of digits
NB, R, K, M, A_BATCH, A_ROWS, A_CONTRACTED, W_BATCH, W_CONTRACTED, W_COLS = (tl.constexpr(i) for i in range(10))
C_BATCH, C_ROWS, C_COLS = (tl.constexpr(i) for i in range(10, 13))
# a gather's run of A, 0 if there is none; runs of an entry, their stride, unit, pads
RUN, RUNS, RUN_STRIDE, RUN_UNIT, PADDED = (tl.constexpr(i) for i in range(13, 18))
W_STRIDE, W_UNIT = tl.constexpr(18), tl.constexpr(19)  # of the factor's runs; unit 0: it is read by digits
# into how many segments rows are sorted, 0: they are not; how far the factor's block of one is from that of the next
SEGMENTS, W_SEGMENT = tl.constexpr(20), tl.constexpr(21)


@triton.jit
def digit(i, D: tl.constexpr, J: tl.constexpr, j: tl.constexpr):
    """Digit j of i, times its stride."""
    at: tl.constexpr = D[J] + 1 + 3 * j
    q = i
    if D[at] > 1:
        q = q // D[at]
    if D[at + 1] > 0:
        q = q % D[at + 1]
    return q * D[at + 2]


@triton.jit
def offset(i, D: tl.constexpr, J: tl.constexpr):
    """The sum of the digits of i."""
    n: tl.constexpr = D[D[J]]
    total = digit(i, D, J, 0)
    for j in tl.static_range(1, n):
        total += digit(i, D, J, j)
    return total


@triton.jit
def span(i0, n: tl.constexpr, D: tl.constexpr, J: tl.constexpr):
    """Offsets of i0 .. i0 + n, i0 being a multiple of n.

    Where n divides the first digit they are one number and one stride. A remainder makes the compiler forget that the
    number is a multiple of n, and every access would fall to one number: it is told again.
    """
    at: tl.constexpr = D[J] + 1
    count: tl.constexpr = D[D[J]]
    if D[at + 1] == 0:
        return (i0 // D[at] + tl.arange(0, n)) * D[at + 2]
    elif D[at + 1] % n == 0:
        total = tl.multiple_of(i0 % D[at + 1], n) * D[at + 2] + tl.arange(0, n) * D[at + 2]
        for j in tl.static_range(1, count):
            total += digit(i0, D, J, j)
        return total
    else:
        return offset(i0 + tl.arange(0, n), D, J)


@triton.jit
def row_offsets(p, inside, stride, ORDER, BY: tl.constexpr, D: tl.constexpr, J: tl.constexpr):
    """Where the rows p begin in a buffer: 64 bits, as tokens times a width may pass 2**31.

    BY = 0: the buffer is in the order of the rows. Else they are sorted, and each is row ORDER[p] // BY of the buffer.
    """
    row = p // D[R] if D[R] > 1 else p
    if BY > 0:
        row = tl.load(ORDER + row, mask=inside, other=0) // BY
    if D[R] == 1:
        return row.to(tl.int64) * stride
    else:
        return row.to(tl.int64) * stride + offset(p % D[R], D, J)


@triton.jit
def scale_of(p, inside, ORDER, SCALE, D: tl.constexpr):
    """What the sorted rows p are multiplied by."""
    return tl.load(SCALE + tl.load(ORDER + p // D[R], mask=inside, other=0), mask=inside, other=0.0).to(tl.float32)


@triton.jit
def segment_of(STARTS, tile, D: tl.constexpr, BP: tl.constexpr):
    """The segment of a tile of rows, the tile's first row, and one past the segment's last; 0, 0, 0 past all tiles.

    Every segment begins a tile of its own, so that all rows of a tile take one block of the factor.
    """
    i = tl.arange(0, triton.next_power_of_2(D[SEGMENTS]))
    begin = tl.load(STARTS + i, mask=i < D[SEGMENTS], other=0) * D[R]
    end = tl.load(STARTS + i + 1, mask=i < D[SEGMENTS], other=0) * D[R]
    tiles = tl.cdiv(end - begin, BP)
    before = tl.cumsum(tiles, 0) - tiles
    own = (tile >= before) & (tile < before + tiles)
    first = tl.sum(tl.where(own, begin + (tile - before) * BP, 0), 0)
    return tl.sum(tl.where(own, i, 0), 0), first, tl.sum(tl.where(own, end, 0), 0)


@triton.jit
def start(TABLE, b, j, D: tl.constexpr):
    """Where A's run j of entry b starts, in units; -1 for a pad."""
    return tl.load(TABLE + b * D[RUNS] + j) - 1


@triton.jit
def factor_start(TABLE, b, j, D: tl.constexpr):
    """Where the factor's run j of entry b starts, in units; any for a pad, which reads nothing."""
    return tl.maximum(tl.load(TABLE + D[NB] * D[RUNS] + b * D[RUNS] + j) - 1, 0)


@triton.jit
def product(
    acc, A, W, TABLE, a_row, inside_p, D: tl.constexpr, b, m0, first, LENGTH: tl.constexpr,
    BM: tl.constexpr, BK: tl.constexpr, EVEN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """acc (BP, BM) + A W over the contracted positions first .. first + LENGTH, A's rows beginning at a_row."""
    m = m0 + tl.arange(0, BM)
    a_base = offset(b, D, A_BATCH)
    w_base = offset(b, D, W_BATCH)
    w_cols = span(m0, BM, D, W_COLS)
    for i in range(0, LENGTH, BK):  # a constant number of turns
        k0 = first + i
        k = k0 + tl.arange(0, BK)
        inside = k < D[K]
        if D[RUN] == 0:
            a_at = span(k0, BK, D, A_CONTRACTED) + a_base
        else:
            if D[RUN] % BK == 0:  # one number a block
                j = tl.minimum(k0 // D[RUN], D[RUNS] - 1)
                within = tl.multiple_of(k0 % D[RUN], BK) + tl.arange(0, BK)
            else:
                j = tl.minimum(k // D[RUN], D[RUNS] - 1)
                within = k % D[RUN]
            at = start(TABLE, b, j, D)
            a_at = tl.maximum(at, 0) * D[RUN_UNIT] + within * D[RUN_STRIDE]
            if D[PADDED]:
                inside = inside & (at >= 0)
        if D[W_UNIT] == 0:
            w_at = span(k0, BK, D, W_CONTRACTED) + w_base
        else:
            w_at = factor_start(TABLE, b, j, D) * D[W_UNIT] + within * D[W_STRIDE]
        if EVEN:
            a = tl.load(A + a_row[:, None] + a_at[None, :], mask=inside_p[:, None], other=0.0)
            w = tl.load(W + w_at[:, None] + w_cols[None, :])
        else:
            a = tl.load(A + a_row[:, None] + a_at[None, :], mask=inside_p[:, None] & inside[None, :], other=0.0)
            w = tl.load(W + w_at[:, None] + w_cols[None, :], mask=inside[:, None] & (m < D[M])[None, :], other=0.0)
        acc = tl.dot(a, w, acc, input_precision=PRECISION)
    return acc


@triton.jit
def together(acc, WORK, COUNT, tile, part, SPLIT: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr):
    """The sum of a tile's parts in their order, so that the bits do not depend on who is first, for the last to arrive.

    Returns it, or for the others their own part; and whether this program is the last.
    """
    inside = tl.arange(0, ROWS)[:, None] * COLS + tl.arange(0, COLS)[None, :]
    parts = WORK + tile.to(tl.int64) * (SPLIT * ROWS * COLS)
    tl.store(parts + part * (ROWS * COLS) + inside, acc)
    tl.debug_barrier()  # every thread's part is written before one of them says so
    last = tl.atomic_add(COUNT + tile, 1, sem="acq_rel") == SPLIT - 1
    if last:
        acc = tl.zeros((ROWS, COLS), dtype=tl.float32)
        for i in tl.static_range(SPLIT):
            acc += tl.load(parts + i * (ROWS * COLS) + inside, cache_modifier=".cg")
        tl.store(COUNT + tile, 0)
    return acc, last


@triton.jit
def put(at, value, mask, ADD: tl.constexpr):
    """Write a tile, or add it to what lies there."""
    if ADD:
        value += tl.load(at, mask=mask, other=0.0).to(tl.float32)
    tl.store(at, value.to(at.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["tokens"])  # one compilation, however many there are
def step(
    C, BIAS, A0, W0, T0, A1, W1, T1, WORK, COUNT, ORDER, STARTS, SCALE, tokens, c_stride, a0_stride, a1_stride,
    D0: tl.constexpr, D1: tl.constexpr, TERMS: tl.constexpr, BP: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr,
    SPLIT: tl.constexpr, EVEN: tl.constexpr, BIASED: tl.constexpr, ADD: tl.constexpr, PRECISION: tl.constexpr,
    READ: tl.constexpr, WRITE: tl.constexpr, SCALED: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """C = or += one or two terms of products, with the bias.

    A program: one tile of rows, of cols of one batch entry, and one of SPLIT parts of what is contracted. Where rows
    are sorted into segments a tile lies in one of them; READ and WRITE are the `BY` of A and C, and each row is
    multiplied by its SCALE where it is stored.
    """
    rows = tokens * D0[R]
    tiles_m: tl.constexpr = (D0[M] + BM - 1) // BM
    tiles_p = tl.cdiv(rows, BP)
    if D0[SEGMENTS] > 0:  # at most: how many there are is known here alone, and those past the last return
        tiles_p = rows // BP + tl.minimum(tokens, D0[SEGMENTS])
    pid = tl.program_id(0)
    part = tl.program_id(1)
    width = GROUP * tiles_m * D0[NB]  # GROUP tiles of rows share the factor's blocks in L2
    begin = pid // width * GROUP
    size = tl.minimum(tiles_p - begin, GROUP)
    tile_p = begin + pid % width % size
    tile = pid % width // size
    p0 = tile_p * BP
    if D0[SEGMENTS] > 0:
        segment, p0, rows = segment_of(STARTS, tile_p, D0, BP)
        if p0 >= rows:
            return
        W0 += segment.to(tl.int64) * D0[W_SEGMENT]
    p = p0 + tl.arange(0, BP)
    if D0[NB] == 1:
        b = 0  # a constant: its alignment is known
        m0 = tile * BM
    else:
        b = tile // tiles_m
        m0 = tile % tiles_m * BM
    LENGTH0: tl.constexpr = ((D0[K] + SPLIT - 1) // SPLIT + BK - 1) // BK * BK
    acc = tl.zeros((BP, BM), dtype=tl.float32)
    a_row = row_offsets(p, p < rows, a0_stride, ORDER, READ, D0, A_ROWS)
    acc = product(acc, A0, W0, T0, a_row, p < rows, D0, b, m0, part * LENGTH0, LENGTH0, BM, BK, EVEN, PRECISION)
    if TERMS > 1:  # its blocks are as wide or wider: the same tile is in another entry, at another col
        if D0[M] == D1[M]:
            b1 = b
            m1 = m0
        else:
            b1 = (b * D0[M] + m0) // D1[M]
            m1 = tl.multiple_of((b * D0[M] + m0) % D1[M], BM)  # BM divides both blocks: `launches` sees to it
        LENGTH1: tl.constexpr = ((D1[K] + SPLIT - 1) // SPLIT + BK - 1) // BK * BK
        a_row = row_offsets(p, p < rows, a1_stride, ORDER, READ, D1, A_ROWS)
        acc = product(acc, A1, W1, T1, a_row, p < rows, D1, b1, m1, part * LENGTH1, LENGTH1, BM, BK, EVEN, PRECISION)
    m = m0 + tl.arange(0, BM)
    written = (p < rows)[:, None] & (m < D0[M])[None, :]
    c = offset(b, D0, C_BATCH) + span(m0, BM, D0, C_COLS)
    at = row_offsets(p, p < rows, c_stride, ORDER, WRITE, D0, C_ROWS)[:, None] + c[None, :]
    last = True
    if SPLIT > 1:
        acc, last = together(acc, WORK, COUNT, pid, part, SPLIT, BP, BM)
    if last:
        if BIASED:
            if D0[R] == 1:
                acc += tl.load(BIAS + c, mask=m < D0[M], other=0.0).to(tl.float32)[None, :]
            else:
                moved = offset(p % D0[R], D0, C_ROWS)
                acc += tl.load(BIAS + moved[:, None] + c[None, :], mask=written, other=0.0).to(tl.float32)
        if SCALED:
            acc *= scale_of(p, p < rows, ORDER, SCALE, D0)[:, None]
        put(C + at, acc, written, ADD)


@triton.jit
def apart(v, G: tl.constexpr, N: tl.constexpr, n: tl.constexpr):
    """(N, n * G), g fastest, as G tiles (N, n)."""
    if G == 2:
        a, b = tl.split(tl.reshape(v, [N, n, 2]))
        return (a, b)
    else:
        a, b = tl.split(tl.reshape(v, [N, n, 2, 2]))
        a0, a2 = tl.split(a)
        b1, b3 = tl.split(b)
        return (a0, b1, a2, b3)


@triton.jit
def joined(a, G: tl.constexpr, N: tl.constexpr, n: tl.constexpr):
    """G tiles (N, n) as (N, n * G), g fastest."""
    if G == 2:
        return tl.reshape(tl.join(a[0], a[1]), [N, n * 2])
    else:
        return tl.reshape(tl.join(tl.join(a[0], a[2]), tl.join(a[1], a[3])), [N, n * 4])


@triton.jit
def turned_product(
    acc, A, W, a_row, inside, m0, D: tl.constexpr, BP: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """D[NB] accumulators + A W of each batch entry; A's tile is turned on chip where the entries lie interleaved."""
    G: tl.constexpr = D[NB]
    TURN: tl.constexpr = (D[D[A_BATCH] + 3] == 1) and (D[D[A_CONTRACTED] + 3] == D[NB])
    for k0 in range(0, D[K], BK):
        new = ()
        if TURN:
            at = k0 * G + tl.arange(0, BK * G)
            a = apart(tl.load(A + a_row[:, None] + at[None, :], mask=inside, other=0.0), G, BP, BK)
            for g in tl.static_range(G):
                w_at = offset(g, D, W_BATCH) + span(k0, BK, D, W_CONTRACTED)
                w = tl.load(W + w_at[:, None] + span(m0, BM, D, W_COLS)[None, :])
                new = new + (tl.dot(a[g], w, acc[g], input_precision=PRECISION),)  # noqa: RUF005
        else:
            for g in tl.static_range(G):
                a_at = offset(g, D, A_BATCH) + span(k0, BK, D, A_CONTRACTED)
                a = tl.load(A + a_row[:, None] + a_at[None, :], mask=inside, other=0.0)
                w_at = offset(g, D, W_BATCH) + span(k0, BK, D, W_CONTRACTED)
                w = tl.load(W + w_at[:, None] + span(m0, BM, D, W_COLS)[None, :])
                new = new + (tl.dot(a, w, acc[g], input_precision=PRECISION),)  # noqa: RUF005
        acc = new
    return acc


@triton.jit(do_not_specialize=["tokens"])
def turned(
    C, BIAS, A0, W0, A1, W1, tokens, c_stride, a0_stride, a1_stride, D0: tl.constexpr, D1: tl.constexpr,
    TERMS: tl.constexpr, BP: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr, BIASED: tl.constexpr, ADD: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """`step` for two or four batch entries at once, of which A or C has the batch innermost. Whole blocks, no rows.

    Products stay two-dimensional: a batched one would not run on Hopper's warp groups.
    """
    G: tl.constexpr = D0[NB]
    p = tl.program_id(0) * BP + tl.arange(0, BP)
    m0 = tl.program_id(1) * BM
    inside = (p < tokens)[:, None]
    acc = ()
    for _ in tl.static_range(G):
        acc = acc + (tl.zeros((BP, BM), dtype=tl.float32),)  # noqa: RUF005
    acc = turned_product(acc, A0, W0, p.to(tl.int64) * a0_stride, inside, m0, D0, BP, BM, BK, PRECISION)
    if TERMS > 1:
        acc = turned_product(acc, A1, W1, p.to(tl.int64) * a1_stride, inside, m0, D1, BP, BM, BK, PRECISION)
    c_row = (p.to(tl.int64) * c_stride)[:, None]
    if (D0[D0[C_BATCH] + 3] == 1) and (D0[D0[C_COLS] + 3] == D0[NB]):
        out = joined(acc, G, BP, BM)
        c = m0 * G + tl.arange(0, BM * G)
        if BIASED:
            out += tl.load(BIAS + c).to(tl.float32)[None, :]
        put(C + c_row + c[None, :], out, inside, ADD)
    else:
        for g in tl.static_range(G):
            c = offset(g, D0, C_BATCH) + span(m0, BM, D0, C_COLS)
            out = acc[g]
            if BIASED:
                out += tl.load(BIAS + c).to(tl.float32)[None, :]
            put(C + c_row + c[None, :], out, inside, ADD)


@triton.jit(do_not_specialize=["tokens", "LENGTH"])
def gradient(
    DW, A, G, TABLE, WORK, COUNT, ORDER, STARTS, SCALE, tokens, a_stride, g_stride, D: tl.constexpr, LENGTH,
    BP: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr, SPLIT: tl.constexpr, ADD: tl.constexpr,
    PRECISION: tl.constexpr, READ: tl.constexpr, GIVEN: tl.constexpr,
):  # fmt: skip
    """dW[b, k, m] = or += sum over rows p of A[p, b, k] G[p, b, m]; LENGTH rows a part, summed in the parts' order.

    Of sorted rows, each times its SCALE, dW of a segment is the sum over its own; READ and GIVEN are the `BY` of A, G.
    """
    tiles_k: tl.constexpr = (D[K] + BK - 1) // BK
    tiles_m: tl.constexpr = (D[M] + BM - 1) // BM
    pid = tl.program_id(0)
    part = tl.program_id(1)
    first = part * LENGTH
    rows = tl.minimum(first + LENGTH, tokens * D[R])
    if D[SEGMENTS] > 0:
        segment = pid // (tiles_k * tiles_m * D[NB])  # 0 where all segments share the factor
        pid = pid % (tiles_k * tiles_m * D[NB])
        first = tl.load(STARTS + segment) * D[R]
        rows = tl.load(STARTS + segment + (1 if D[W_SEGMENT] > 0 else D[SEGMENTS])) * D[R]
        DW += segment.to(tl.int64) * D[W_SEGMENT]
    b = pid // (tiles_k * tiles_m)
    k0 = pid // tiles_m % tiles_k * BK
    m0 = pid % tiles_m * BM
    k = k0 + tl.arange(0, BK)
    m = m0 + tl.arange(0, BM)
    kept = k < D[K]
    if D[RUN] > 0:
        at = start(TABLE, b, tl.minimum(k // D[RUN], D[RUNS] - 1), D)
        kept = kept & (at >= 0)
        a_at = tl.maximum(at, 0) * D[RUN_UNIT] + k % D[RUN] * D[RUN_STRIDE]
    else:
        a_at = span(k0, BK, D, A_CONTRACTED) + offset(b, D, A_BATCH)
    g_at = span(m0, BM, D, C_COLS) + offset(b, D, C_BATCH)
    acc = tl.zeros((BK, BM), dtype=tl.float32)
    for p0 in range(first, rows, BP):
        p = p0 + tl.arange(0, BP)
        a_row = row_offsets(p, p < rows, a_stride, ORDER, READ, D, A_ROWS)
        g_row = row_offsets(p, p < rows, g_stride, ORDER, GIVEN, D, C_ROWS)
        a = tl.load(A + a_row[None, :] + a_at[:, None], mask=(p < rows)[None, :] & kept[:, None], other=0.0)
        g = tl.load(G + g_row[:, None] + g_at[None, :], mask=(p < rows)[:, None] & (m < D[M])[None, :], other=0.0)
        if D[SEGMENTS] > 0:
            g = (g * scale_of(p, p < rows, ORDER, SCALE, D)[:, None]).to(g.dtype)
        acc = tl.dot(a, g, acc, input_precision=PRECISION)
    written = (k < D[K])[:, None] & (m < D[M])[None, :]
    w_at = offset(b, D, W_BATCH) + span(k0, BK, D, W_CONTRACTED)[:, None] + span(m0, BM, D, W_COLS)[None, :]
    last = True
    if SPLIT > 1:
        acc, last = together(acc, WORK, COUNT, pid, part, SPLIT, BK, BM)
    if last:
        put(DW + w_at, acc, written, ADD)
