// The gradient of a factor: dW[k][m] += sum over tokens of A[k][t] G[m][t], for one block of the factor and 64 cols.
//
//                       G   t | m0-15 m16-31 m32-47 m48-63       64 tokens x 64 cols, turned to rows of tokens (L1)
//                             |   |      |      |      |
//     A  k0 [ . t . ] ------->  sum    sum    sum    sum
//        .. one number,         ...                            6 rows of the block x 4 vectors of cols
//        k5  broadcast ------>  sum    sum    sum    sum
//
// 64 tokens are summed from zero, whatever the tiles, then added: the same bits on any number of threads, and errors that
// do not grow with the tokens (one running sum: 6.7 times torch's error for Kronecker at 4096 summands).
// bfloat16: tokens t and t + 1 are a pair in A, where they are neighbours, and in G, where two rows are interleaved.
#pragma once
#include "pairs.h"

constexpr int SUMMED = 64, COLS = 4 * VL;  // tokens summed from zero; cols of a unit

// A run of tokens inside one tile.
struct Piece {
  const float *a, *g;  // the entry's piece of A and of G, at the first token
  int tokens;          // of which so many are there
};

// G's cols [m, m + cols) of the pieces, to [token][COLS]; tokens not there and cols beyond are zero.
static inline void turned(const Piece* pieces, int count, const int32_t* goff, int64_t T, int cols, float* to) {
  for (int i = 0; i < count; i++) {
    const int whole = (pieces[i].tokens + VL - 1) / VL * VL;
    for (int t = 0; t < whole; t += VL)
      for (int m = 0; m < cols; m += VL) {
        vf v[VL];
        if (cols - m >= VL)
          for (int j = 0; j < VL; j++) v[j] = load(pieces[i].g + goff[m + j] * T + t);
        else
          for (int j = 0; j < VL; j++) v[j] = m + j < cols ? load(pieces[i].g + goff[m + j] * T + t) : vf{};
        transpose(v);
        for (int j = 0; j < VL; j++) store(to + (t + j) * COLS + m, v[j]);
      }
    to += whole * COLS;
  }
}

struct FloatSums {
  // R rows of A times V vectors of cols, to D[k][COLS], or added to it
  template <int R, int V>
  static INLINE void block(const Piece* pieces, int count, const int32_t* koff, int64_t T, const float* g, float* D, bool add) {
    vf sums[R][V];
    for (int r = 0; r < R; r++)
      for (int v = 0; v < V; v++) sums[r][v] = vf{};
    for (int i = 0; i < count; i++) {
      const float* row[R];
      for (int r = 0; r < R; r++) row[r] = pieces[i].a + koff[r] * T;
      const int n = pieces[i].tokens;
      for (int t = 0; t < n; t++) {
        vf cols[V];
        for (int v = 0; v < V; v++) cols[v] = load(g + t * COLS + v * VL);
        for (int r = 0; r < R; r++) {
          vf x = all(row[r][t]);
          for (int v = 0; v < V; v++) sums[r][v] += x * cols[v];
        }
      }
      g += (n + VL - 1) / VL * VL * COLS;
    }
    for (int r = 0; r < R; r++)
      for (int v = 0; v < V; v++) {
        float* d = D + r * COLS + v * VL;
        store(d, add ? load(d) + sums[r][v] : sums[r][v]);
      }
  }
  static void prepared(const Piece*, int, float*) {}
};

#if PAIRED
struct PairSums {
  template <int R, int V>
  static INLINE void block(const Piece* pieces, int count, const int32_t* koff, int64_t T, const float* g, float* D, bool add) {
    __m512 sums[R][V];
    for (int r = 0; r < R; r++)
      for (int v = 0; v < V; v++) sums[r][v] = _mm512_setzero_ps();
    for (int i = 0; i < count; i++) {
      const int pairs = (pieces[i].tokens + 1) / 2, whole = (pieces[i].tokens + 15) / 16 * 16;
      alignas(64) uint32_t row[R][SUMMED / 2];
      for (int r = 0; r < R; r++) {
        const float* from = pieces[i].a + koff[r] * T;
        for (int t = 0; t < whole; t += 16)
          _mm256_store_si256((__m256i*)(row[r] + t / 2), (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(from + t)));
      }
      for (int t = 0; t < pairs; t++) {
        __m512i cols[V];
        for (int v = 0; v < V; v++) cols[v] = _mm512_load_si512((const uint32_t*)g + t * COLS + v * 16);
        for (int r = 0; r < R; r++) {
          __m512i x = _mm512_set1_epi32((int)row[r][t]);
          for (int v = 0; v < V; v++) sums[r][v] = add_pairs(sums[r][v], x, cols[v]);
        }
      }
      g += whole / 2 * COLS;
    }
    for (int r = 0; r < R; r++)
      for (int v = 0; v < V; v++) {
        float* d = D + r * COLS + v * VL;
        _mm512_storeu_ps(d, add ? _mm512_add_ps(_mm512_loadu_ps(d), sums[r][v]) : sums[r][v]);
      }
  }
  // rows of tokens, in place, to pairs [t / 2][COLS]
  static void prepared(const Piece* pieces, int count, float* g) {
    int rows = 0;
    for (int i = 0; i < count; i++) rows += (pieces[i].tokens + 15) / 16 * 16;
    for (int t = 0; t < rows; t += 2)
      for (int m = 0; m < COLS; m += 16)
        _mm512_store_si512(g + t / 2 * COLS + m, paired(_mm512_load_ps(g + t * COLS + m), _mm512_load_ps(g + (t + 1) * COLS + m)));
  }
};
#endif

template <class Sums, int V>
static INLINE void sums_of(int rows, const Piece* pieces, int count, const int32_t* koff, int64_t T, const float* g, float* D,
                           bool add) {
  switch (rows) {
    case 1: Sums::template block<1, V>(pieces, count, koff, T, g, D, add); break;
    case 2: Sums::template block<2, V>(pieces, count, koff, T, g, D, add); break;
    case 3: Sums::template block<3, V>(pieces, count, koff, T, g, D, add); break;
    case 4: Sums::template block<4, V>(pieces, count, koff, T, g, D, add); break;
    case 5: Sums::template block<5, V>(pieces, count, koff, T, g, D, add); break;
    default: Sums::template block<6, V>(pieces, count, koff, T, g, D, add);
  }
}

// A chunk of tokens in tiles: where the tiles' activations and gradients lie.
struct Chunk {
  const float* first;  // of tile 0; the others follow `stride` numbers apart
  int64_t stride, T, tokens;
  int64_t activations, gradients;  // from a tile's first number to A and G
};

// Features [off[0], off[n)) of the pieces at `from` into the L1: they lie in the L3, 256 bytes of each apart from the next.
static inline void fetched(const float* const* from, const Piece* pieces, int count, const int32_t* off, int64_t n, int64_t T) {
  for (int i = 0; i < count; i++)
    for (int64_t j = 0; j < n; j++)
      for (int t = 0; t < pieces[i].tokens; t += 16) __builtin_prefetch(from[i] + off[j] * T + t);
}

// A unit: entries [b0, b1) of one block of the factor, its cols [m0, m0 + cols), rows [k0, k1), and tokens of the chunk.
struct Unit {
  int64_t b0, b1, m0, k0, k1, tokens_begin, tokens_end;
  int cols;
};

// The unit's sums to D[k - k0][COLS]. g holds SUMMED x COLS.
template <class Sums> APART void unit_sums(const Step& s, const Chunk& chunk, const Unit& u, float* g, float* D) {
  const int64_t T = chunk.T, m0 = u.m0, k0 = u.k0, k1 = u.k1;
  const int cols = u.cols;
  const int vectors = (cols + VL - 1) / VL;
  const int64_t kb = parts(k1 - k0, TR);
  bool add = false;
  for (int64_t b = u.b0; b < u.b1; b++) {
    const int32_t *koff = s.a_offsets(b), *goff = s.c_offsets(b) + m0;
    for (int64_t t0 = u.tokens_begin; t0 < u.tokens_end; t0 += SUMMED) {
      Piece pieces[SUMMED / 16];
      int count = 0;
      const int64_t end = std::min(t0 + SUMMED, u.tokens_end);
      for (int64_t t = t0; t < end;) {
        const int64_t q = t / T, inside = t % T;
        const int64_t n = std::min(T - inside, end - t);
        const float* tile = chunk.first + q * chunk.stride + inside;
        pieces[count++] = {tile + chunk.activations + s.a_base[b] * T, tile + chunk.gradients + s.c_base[b] * T, (int)n};
        t += n;
      }
      const float *as[SUMMED / 16], *gs[SUMMED / 16];
      for (int i = 0; i < count; i++) as[i] = pieces[i].a, gs[i] = pieces[i].g;
      fetched(gs, pieces, count, goff, cols, T);
      fetched(as, pieces, count, koff + k0, std::min<int64_t>(TR, k1 - k0), T);
      turned(pieces, count, goff, T, cols, g);
      Sums::prepared(pieces, count, g);
      for (int64_t i = 0; i < kb; i++) {
        const int64_t k = (k1 - k0) * i / kb;
        const int r = (int)((k1 - k0) * (i + 1) / kb - k);
        const int32_t* ko = koff + k0 + k;
        float* d = D + k * COLS;
        fetched(as, pieces, count, ko + r, std::min<int64_t>(TR, k1 - k0 - k - r), T);
        for (int v = 0; v < vectors; v += TV) {
          const float* gv = g + v * VL;
          float* dv = d + v * VL;
          switch (std::min(TV, vectors - v)) {
            case 1: sums_of<Sums, 1>(r, pieces, count, ko, T, gv, dv, add); break;
            case 2: sums_of<Sums, 2>(r, pieces, count, ko, T, gv, dv, add); break;
            case 3: sums_of<Sums, std::min(3, TV)>(r, pieces, count, ko, T, gv, dv, add); break;
            default: sums_of<Sums, TV>(r, pieces, count, ko, T, gv, dv, add);
          }
        }
      }
      add = true;
    }
  }
}

// A unit's sums to where they belong in the factor's gradient: added to `sum` (or written, for the first chunk), and, if
// it is not nullptr, rounded into dW. A vector of cols, or of rows, goes at once where its numbers lie side by side: of
// butterfly's factors (blocks inside a radix) only runs of cols do, and one by one 256 x 256 blocks took as long as their sums.
template <class E>
APART void write_unit(const Step& s, const Unit& u, const float* D, bool first, float* sum, E* dW) {
  const int64_t base = s.w_base[u.b0];
  const int rows = (int)(u.k1 - u.k0), cols = u.cols;
  auto put = [&](int64_t at, vf v, int n) {  // n numbers side by side
    if (n == VL) {
      if (sum && !first) v += load(sum + at);
      if (dW) store(dW + at, v);
      else store(sum + at, v);
    } else {
      if (sum && !first) v += load_part(sum + at, n);
      if (dW) store_part(dW + at, v, n);
      else store_part(sum + at, v, n);
    }
  };
  const bool by_cols = consecutive(s.w_m + u.m0, std::min(VL, cols));
  const bool by_rows = !by_cols && consecutive(s.w_k + u.k0, std::min(VL, rows));
  for (int k = 0; k < rows; k += VL)
    for (int m = 0; m < cols; m += VL) {
      const int ks = std::min(VL, rows - k), ms = std::min(VL, cols - m);
      const int32_t *wk = s.w_k + u.k0 + k, *wm = s.w_m + u.m0 + m;
      const float* d = D + k * COLS + m;
      if (by_cols && consecutive(wm, ms)) {
        for (int i = 0; i < ks; i++) put(base + wk[i] + wm[0], load(d + i * COLS), ms);
      } else if (by_rows && consecutive(wk, ks)) {
        vf v[VL];
        for (int i = 0; i < VL; i++) v[i] = i < ks ? load(d + i * COLS) : vf{};
        transpose(v);
        for (int i = 0; i < ms; i++) put(base + wk[0] + wm[i], v[i], ks);
      } else {
        for (int i = 0; i < ms; i++)
          for (int j = 0; j < ks; j++) {
            const int64_t at = base + wk[j] + wm[i];
            float v = d[j * COLS + i];
            if (sum && !first) v += sum[at];
            if (!dW) sum[at] = v;
            else if constexpr (sizeof(E) == 4) dW[at] = v;
            else dW[at] = narrow(v);
          }
      }
    }
}
