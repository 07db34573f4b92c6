// The product of one step on a tile: C[m][t] += W[m][k] A[k][t], tokens in vectors.
//
//                       A   k | t0-15 t16-31 t32-47 t48-63        4 vectors of one feature's tokens
//                             |   |      |      |      |
//     W  m0 [ . k . ] ------->  sum    sum    sum    sum
//        m1 [ . k . ] ------->  sum    sum    sum    sum          6 rows x 4 vectors of sums in registers;
//        .. one number,         ...                               W is read where it lies, through six row pointers
//        m5  broadcast ------>  sum    sum    sum    sum          and one offset a k
//
// K goes in blocks of 64: rows of W a power of two apart then stay in the cache for the next 6 rows (4096 x 1024 dense:
// 342 GFLOP/s against 303 with 128, AMD Zen 5), and each block is summed from zero, so that errors do not grow with K.
#pragma once
#include "program.h"
#include "vector.h"

static inline int64_t parts(int64_t n, int64_t most) { return (n + most - 1) / most; }
static inline int64_t row_blocks(const Step& s) { return parts(s.cols, TR); }
static inline int64_t units(const Step& s) { return s.entries * row_blocks(s); }  // what a step is split into

// float32 where it lies.
struct Floats {
  static constexpr int BLOCK = 64;
  const Step& s;
  const float* W;
  const float* A;
  float* C;
  int64_t T;
  const float *w = nullptr, *a = nullptr;
  float* c = nullptr;
  const int32_t *koff = nullptr, *moff = nullptr;

  int64_t contracted() const { return s.contracted; }
  void entry(int64_t b, int64_t) {
    w = W + s.w_base[b], a = A + s.a_base[b] * T, c = C + s.c_base[b] * T;
    koff = s.a_offsets(b), moff = s.c_offsets(b);
  }
  template <int R, int V> INLINE void block(int64_t k0, int64_t k1, int64_t m, int64_t t, bool add) const {
    vf sums[R][V];
    const float* row[R];
    for (int r = 0; r < R; r++) {
      row[r] = w + s.w_m[m + r];
      for (int v = 0; v < V; v++) sums[r][v] = vf{};
    }
    const float* from = a + t;
    const int32_t *ko = koff, *wk = s.w_k;
    const int64_t T = this->T;
    for (int64_t k = k0; k < k1; k++) {
      const float* p = from + ko[k] * T;
      const int64_t o = wk[k];
      vf tokens[V];
      for (int v = 0; v < V; v++) tokens[v] = load(p + v * VL);
      // the next cols' line, to the L2 (in the L1 rows a power of two apart collide); with fewer vectors it costs more
      if (V == TV) __builtin_prefetch(row[R - 1] + o + 16, 0, 2);
      for (int r = 0; r < R; r++) {
        vf weight = all(row[r][o]);
        for (int v = 0; v < V; v++) sums[r][v] += weight * tokens[v];
      }
    }
    float* to = c + t;
    for (int r = 0; r < R; r++) {
      float* q = to + moff[m + r] * T;
      for (int v = 0; v < V; v++) store(q + v * VL, add ? load(q + v * VL) + sums[r][v] : sums[r][v]);
    }
  }
};

template <int V, class P>
INLINE void rows_of_block(const P& p, int rows, int64_t k0, int64_t k1, int64_t m, int64_t t, bool add) {
  switch (rows) {
    case 1: p.template block<1, V>(k0, k1, m, t, add); break;
    case 2: p.template block<2, V>(k0, k1, m, t, add); break;
    case 3: p.template block<3, V>(k0, k1, m, t, add); break;
    case 4: p.template block<4, V>(k0, k1, m, t, add); break;
    case 5: p.template block<5, V>(k0, k1, m, t, add); break;
    default: p.template block<6, V>(k0, k1, m, t, add);
  }
}

// Units [u0, u1) of a step, each an entry and up to 6 cols, on the first `tokens` (whole vectors) of a tile.
// Cols are dealt evenly to the blocks: 32 are 6 6 5 5 5 5.
template <class P> APART void product(P p, int64_t tokens, int64_t u0, int64_t u1) {
  const Step& s = p.s;
  const int64_t mb = row_blocks(s), K = p.contracted(), kb = parts(K, P::BLOCK);
  while (u0 < u1) {
    int64_t b = u0 / mb, first = u0 % mb, end = std::min(mb, first + (u1 - u0));
    p.entry(b, tokens);
    for (int64_t k = 0; k < kb; k++) {
      int64_t k0 = K * k / kb, k1 = K * (k + 1) / kb;
      bool add = s.add || k;
      for (int64_t i = first; i < end; i++) {
        int64_t m = s.cols * i / mb;
        int rows = (int)(s.cols * (i + 1) / mb - m);
        for (int64_t t = 0; t < tokens;) {
          int64_t vectors = (tokens - t) / VL;
          if (vectors >= TV) {
            rows_of_block<TV>(p, rows, k0, k1, m, t, add), t += TV * VL;
#if WIDE || defined(__aarch64__)
          } else if (vectors == 3) {
            rows_of_block<3>(p, rows, k0, k1, m, t, add), t += 3 * VL;
          } else if (vectors == 2) {
            rows_of_block<2>(p, rows, k0, k1, m, t, add), t += 2 * VL;
#endif
          } else {
            rows_of_block<1>(p, rows, k0, k1, m, t, add), t += VL;
          }
        }
      }
    }
    u0 += end - first;
  }
}
