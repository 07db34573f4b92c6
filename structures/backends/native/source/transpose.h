// Between rows of tokens, as torch holds them, and a tile, in which a feature's tokens lie together:
//
//     x                 features ->             tile            tokens ->
//     token 0      [ 0  1  2  3  4  5 ... ]     feature 0  [ t0 t1 t2 ... t63 ]
//     token 1      [ 0  1  2  3  4  5 ... ]     feature 1  [ t0 t1 t2 ... t63 ]
//
// Squares of VL x VL are transposed in registers. Rows of y a power of two apart fall on the same few places of a cache,
// so y is written through a buffer of VL rows x 128 features, whole runs of lines at a time: at 1024 features, float32,
// 11 -> 50 GB/s a thread on an AMD Zen 5. Tokens are the outer loop in both directions for the same reason.
#pragma once
#include "vector.h"

constexpr int RUN = 128;

// Rows of x: `ld` apart from one another,
template <class E> struct Apart {
  const E* x;
  int64_t ld;

  INLINE const E* row(int64_t t) const { return x + t * ld; }
  INLINE Apart from(int64_t t, int) const { return {row(t), ld}; }
  INLINE vf whole(int i, int64_t f) const { return load(x + i * ld + f); }
  INLINE vf part(int i, int64_t f, int n) const { return load_part(x + i * ld + f, n); }
};
// or those of the tokens in a list, each times a weight if there are weights.
template <class E, bool WEIGHTED> struct Picked {
  struct Few {
    const E* row[VL];
    float weight[VL];
    INLINE vf whole(int i, int64_t f) const { return WEIGHTED ? load(row[i] + f) * weight[i] : load(row[i] + f); }
    INLINE vf part(int i, int64_t f, int n) const { return load_part(row[i] + f, n) * (WEIGHTED ? weight[i] : 1.f); }
  };
  const E* x;
  int64_t ld;
  const int32_t* tokens;
  const float* weights;

  INLINE const E* row(int64_t t) const { return x + tokens[t] * ld; }
  INLINE Few from(int64_t t, int there) const {
    Few few;
    for (int i = 0; i < there; i++) few.row[i] = row(t + i), few.weight[i] = WEIGHTED ? weights[t + i] : 1.f;
    return few;
  }
};

// Features [f0, f1) of `rows` rows of x into a tile of T tokens; zeros up to the next whole vector.
template <class R> APART void tile_in(const R& x, int rows, float* tile, int64_t T, int64_t f0, int64_t f1) {
  int64_t whole = f0 + (f1 - f0) / VL * VL;
  int left = (int)(f1 - whole);
  for (int t = 0; t < rows; t += VL) {
    int there = rows - t < VL ? rows - t : VL;
    const auto from = x.from(t, there);
    float* to = tile + t;
    vf v[VL];
    if (there == VL) {
      for (int64_t f = f0; f < whole; f += VL) {
        for (int i = 0; i < VL; i++) v[i] = from.whole(i, f);
        transpose(v);
        for (int i = 0; i < VL; i++) store(to + (f + i) * T, v[i]);
      }
    } else {
      for (int64_t f = f0; f < whole; f += VL) {
        for (int i = 0; i < VL; i++) v[i] = i < there ? from.whole(i, f) : vf{};
        transpose(v);
        for (int i = 0; i < VL; i++) store(to + (f + i) * T, v[i]);
      }
    }
    if (left) {
      for (int i = 0; i < VL; i++) v[i] = i < there ? from.part(i, whole, left) : vf{};
      transpose(v);
      for (int i = 0; i < VL; i++)
        if (i < left) store(to + (whole + i) * T, v[i]);
    }
  }
}

// Features [f0, f1) of a tile, with the bias (or nullptr), to `rows` rows of y; past the cache if `past`.
template <class E>
APART void tile_out(const float* tile, int64_t T, const E* bias, int rows, E* y, int64_t ld, int64_t f0, int64_t f1, bool past) {
  alignas(64) float run[VL * (RUN + VL)];
  constexpr int LR = RUN + VL;
  for (int t = 0; t < rows; t += VL) {
    int there = rows - t < VL ? rows - t : VL;
    for (int64_t g0 = f0; g0 < f1; g0 += RUN) {
      int64_t g1 = g0 + RUN < f1 ? g0 + RUN : f1, whole = g0 + (g1 - g0) / VL * VL;
      int left = (int)(g1 - whole);
      for (int64_t f = g0; f < g1; f += VL) {
        vf v[VL];
        if (f < whole)
          for (int i = 0; i < VL; i++) v[i] = load(tile + (f + i) * T + t);
        else
          for (int i = 0; i < VL; i++) v[i] = i < left ? load(tile + (f + i) * T + t) : vf{};
        transpose(v);
        for (int i = 0; i < VL; i++) store(run + i * LR + (f - g0), v[i]);
      }
      for (int i = 0; i < there; i++) {
        E* to = y + (t + i) * ld;
        const float* from = run + i * LR - g0;
        if (past)  // then there is no tail
          for (int64_t f = g0; f < g1; f += VL) stream(to + f, bias ? load(from + f) + load(bias + f) : load(from + f));
        else if (bias)
          for (int64_t f = g0; f < whole; f += VL) store(to + f, load(from + f) + load(bias + f));
        else
          for (int64_t f = g0; f < whole; f += VL) store(to + f, load(from + f));
        if (left && !past) {
          vf v = load(from + whole);
          store_part(to + whole, bias ? v + load_part(bias + whole, left) : v, left);
        }
      }
    }
  }
}

// Whether y is written past the cache: larger than a quarter of the L3, and every row made of whole, aligned vectors.
// 1024 x 4096, Monarch with 32 blocks: 2040 -> 1600 us, with a reader right after 2204 -> 1974 (AMD Zen 5, 32 MB of L3).
template <class E> static bool past_cache(const E* y, int64_t rows, int64_t features, int64_t l3) {
  return rows * features * (int64_t)sizeof(E) > l3 / 4 && features % VL == 0 && ((uintptr_t)y & (VL * sizeof(E) - 1)) == 0;
}
