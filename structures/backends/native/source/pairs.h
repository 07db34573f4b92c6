// The same product in bfloat16: numbers k and k + 1 of A and of W stand side by side in 32 bits, and one instruction adds
// both products to a float32 sum.
//
//     A   pair k | (k, k+1) of t0-15 | t16-31 | t32-47 | t48-63       formed from two float32 rows of the tile
//     W   m      | (k, k+1) broadcast                                 where it lies if k is innermost, else from a copy
//
// Tiles stay float32, so the order of the contracted axes never matters. Where the processor has no such instruction the
// factors are widened to float32 copies and `Floats` multiplies them.
#pragma once
#include "threads.h"
#include "tile.h"

static const float ONE = 1.f;
alignas(4) static const uint16_t ONE_BF16[2] = {0x3f80, 0};

#if PAIRED
// pairs (bf16(low), bf16(high)) of 16 tokens
INLINE __m512i paired(__m512 low, __m512 high) {
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5,
                                         20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return _mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh(high, low));
}
INLINE __m512 add_pairs(__m512 sum, __m512i a, __m512i b) { return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b); }
INLINE uint32_t pair_at(const char* p) {
  uint32_t u;
  memcpy(&u, p, 4);
  return u;
}

struct Pairs {
  static constexpr int BLOCK = 128;  // pairs summed from zero
  const Step& s;
  const bf16* W;          // the factor, or nullptr
  const uint32_t* packed;  // else its copy: [block][up to 6 cols][pairs][those cols]
  const float* A;
  float* C;
  int64_t T;
  uint32_t* formed;  // [pairs][tokens]
  int64_t tokens = 0, previous = -1;
  const bf16* w = nullptr;
  const uint32_t* q = nullptr;
  float* c = nullptr;
  const int32_t* moff = nullptr;

  int64_t contracted() const { return (s.contracted + 1) / 2; }
  void entry(int64_t b, int64_t count) {
    c = C + s.c_base[b] * T, moff = s.c_offsets(b);
    if (packed) q = packed + (int64_t)s.block[b] * contracted() * s.cols;
    else w = W + s.w_base[b] + s.w_k[0];
    if (previous >= 0 && !s.a_stride && s.a_base[b] == s.a_base[previous]) return;
    previous = b, tokens = count;
    const float* a = A + s.a_base[b] * T;
    const int32_t* koff = s.a_offsets(b);
    int64_t whole = s.contracted / 2, all = contracted();
    for (int64_t k = 0; k < whole; k++) {
      const float *p = a + koff[2 * k] * T, *r = a + koff[2 * k + 1] * T;
      for (int64_t t = 0; t < count; t += 16)
        _mm512_store_si512(formed + k * count + t, paired(_mm512_loadu_ps(p + t), _mm512_loadu_ps(r + t)));
    }
    if (whole < all)
      for (int64_t t = 0; t < count; t += 16)
        _mm512_store_si512(formed + whole * count + t, paired(_mm512_loadu_ps(a + koff[2 * whole] * T + t), _mm512_setzero_ps()));
  }
  template <int R, int V> INLINE void block(int64_t k0, int64_t k1, int64_t m, int64_t t, bool add) const {
    __m512 sums[R][V];
    for (int r = 0; r < R; r++)
      for (int v = 0; v < V; v++) sums[r][v] = _mm512_setzero_ps();
    const uint32_t* from = formed + t;
    const char* row[R];
    for (int r = 0; r < R; r++) row[r] = packed ? (const char*)(q + m * contracted() + r) : (const char*)(w + s.w_m[m + r]);
    const int64_t step = packed ? R * 4 : 4;
    const int64_t whole = packed ? k1 : std::min(k1, s.contracted / 2);
    for (int64_t k = k0; k < whole; k++) {
      __m512i pairs[V];
      for (int v = 0; v < V; v++) pairs[v] = _mm512_load_si512(from + k * tokens + v * 16);
      const int64_t o = k * step;
      for (int r = 0; r < R; r++) {
        __m512i weight = _mm512_set1_epi32((int)pair_at(row[r] + o));
        for (int v = 0; v < V; v++) sums[r][v] = add_pairs(sums[r][v], weight, pairs[v]);
      }
    }
    if (whole < k1)  // the last number of an odd count stands alone: what lies behind it is another's
      for (int r = 0; r < R; r++) {
        uint16_t alone;
        memcpy(&alone, row[r] + whole * 4, 2);
        __m512i weight = _mm512_set1_epi32(alone);
        for (int v = 0; v < V; v++)
          sums[r][v] = add_pairs(sums[r][v], weight, _mm512_load_si512(from + whole * tokens + v * 16));
      }
    for (int r = 0; r < R; r++) {
      float* to = c + t + moff[m + r] * T;
      for (int v = 0; v < V; v++)
        _mm512_storeu_ps(to + v * 16, add ? _mm512_add_ps(_mm512_loadu_ps(to + v * 16), sums[r][v]) : sums[r][v]);
    }
  }
};

// Part `me` of `many` of a step's factor as pairs, in the order in which `block` reads them. Six register tiles' cols are
// done at once, so that lines of the factor are read whole.
static void pack_pairs(const Step& s, const bf16* W, uint32_t* to, int me, int many) {
  constexpr int TOGETHER = 6;
  const int64_t rows = s.entries / s.blocks, pairs = (s.contracted + 1) / 2, mb = row_blocks(s), groups = parts(mb, TOGETHER);
  const bool inner = consecutive(s.w_m, s.cols);
  Share mine = share(s.blocks * groups, me, many);
  for (int64_t u = mine.begin; u < mine.end; u++) {
    const int64_t block = u / groups, first = u % groups * TOGETHER, end = std::min(mb, first + TOGETHER);
    const bf16* w = W + s.w_base[block * rows];
    uint32_t* o = to + block * pairs * s.cols;
    for (int64_t k = 0; k < pairs; k++) {
      const bool two = 2 * k + 1 < s.contracted;
      const bf16 *p = w + s.w_k[2 * k], *q = w + s.w_k[two ? 2 * k + 1 : 2 * k];
      for (int64_t i = first; i < end; i++) {
        const int64_t m = s.cols * i / mb;
        const int n = (int)(s.cols * (i + 1) / mb - m);
        uint32_t* at = o + m * pairs + k * n;
        if (inner) {
          const __mmask8 some = (__mmask8)((1u << n) - 1);
          const __m128i low = _mm_maskz_loadu_epi16(some, p + s.w_m[m]);
          const __m128i high = two ? _mm_maskz_loadu_epi16(some, q + s.w_m[m]) : _mm_setzero_si128();
          const __m256i both = _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_unpacklo_epi16(low, high)), _mm_unpackhi_epi16(low, high), 1);
          _mm256_mask_storeu_epi32(at, some, both);
        } else {
          for (int r = 0; r < n; r++) {
            const int32_t c = s.w_m[m + r];
            at[r] = p[c].bits | (two ? (uint32_t)q[c].bits << 16 : 0u);
          }
        }
      }
    }
  }
}
#endif

// Numbers [begin, end) widened, or copied.
template <class E> static void widen_all(const E* from, float* to, int64_t begin, int64_t end) {
  int64_t i = begin;
  for (; i + VL <= end; i += VL) store(to + i, load(from + i));
  for (; i < end; i++) to[i] = widen(from[i]);
}
