// The processor's vectors of floats, and bfloat16 numbers beside them: the only file that knows instructions.
#pragma once
#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define INLINE inline __attribute__((always_inline))
#define APART static __attribute__((noinline))  // one copy of what is large: it halves the time to compile

#if defined(STRUCTURES_VECTOR)
#define VECTOR STRUCTURES_VECTOR
#elif defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#define VECTOR 16
#elif defined(__AVX__)
#define VECTOR 8
#else
#define VECTOR 4
#endif
constexpr int VL = VECTOR;
#define WIDE (VECTOR == 16)  // 512 bits: own shuffles and masks
#if WIDE && defined(__AVX512BF16__)
#define PAIRED 1  // products of pairs of bfloat16, summed in float
#else
#define PAIRED 0
#endif

// Vectors of tokens (or of cols) in a register tile of 6 rows: 24 sums where there are 32 registers, 12 where 16.
#if WIDE || defined(__aarch64__)
constexpr int TV = 4;
#else
constexpr int TV = 2;
#endif
constexpr int TR = 6;

struct bf16 { uint16_t bits; };

typedef float vf __attribute__((vector_size(VL * 4), aligned(4), may_alias));
typedef uint32_t vu __attribute__((vector_size(VL * 4), aligned(4), may_alias));
typedef uint16_t vh __attribute__((vector_size(VL * 2), aligned(2), may_alias));

INLINE vf load(const float* p) { return *(const vf*)p; }
INLINE vf load(const bf16* p) {
#if WIDE
  return (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16);
#else
  return (vf)(__builtin_convertvector(*(const vh*)p, vu) << 16);
#endif
}
INLINE void store(float* p, vf v) { *(vf*)p = v; }
INLINE vf all(float s) { return s - vf{}; }

INLINE float widen(float v) { return v; }
INLINE float widen(bf16 v) {
  uint32_t u = (uint32_t)v.bits << 16;
  float f;
  memcpy(&f, &u, 4);
  return f;
}

// To the nearest, ties to even; a NaN stays one.
INLINE bf16 narrow(float v) {
  uint32_t u;
  memcpy(&u, &v, 4);
  if (v != v) return {(uint16_t)(u >> 16 | 0x40)};
  return {(uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16)};
}
INLINE void store(bf16* p, vf v) {
#if PAIRED
  _mm256_storeu_si256((__m256i*)p, (__m256i)_mm512_cvtneps_pbh((__m512)v));
#else
  vu u = (vu)v, nan = (vu)(v != v);
  vu near = (u + 0x7fff + (u >> 16 & 1)) >> 16, kept = u >> 16 | 0x40;
  *(vh*)p = __builtin_convertvector((near & ~nan) | (kept & nan), vh);
#endif
}

// The first n < VL numbers, zeros behind them.
template <class E> inline vf load_part(const E* p, int n) {
  E part[VL] = {};
  memcpy(part, p, n * sizeof(E));
  return load(part);
}
template <class E> inline void store_part(E* p, vf v, int n) {
  E part[VL];
  store(part, v);
  memcpy(p, part, n * sizeof(E));
}
#if WIDE
INLINE __mmask16 first(int n) { return (__mmask16)((1u << n) - 1); }
template <> inline vf load_part(const float* p, int n) { return (vf)_mm512_maskz_loadu_ps(first(n), p); }
template <> inline void store_part(float* p, vf v, int n) { _mm512_mask_storeu_ps(p, first(n), (__m512)v); }
template <> inline vf load_part(const bf16* p, int n) {
  return (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first(n), p)), 16);
}
template <> inline void store_part(bf16* p, vf v, int n) {
  bf16 part[VL];
  store(part, v);
  _mm256_mask_storeu_epi16(p, first(n), _mm256_loadu_si256((const __m256i*)part));
}
#endif

// Past the cache; p has to be aligned to the vector. `fence` before anybody else reads.
INLINE void stream(float* p, vf v) {
#if WIDE
  _mm512_stream_ps(p, (__m512)v);
#elif VECTOR == 8
  _mm256_stream_ps(p, (__m256)v);
#else
  store(p, v);
#endif
}
INLINE void stream(bf16* p, vf v) {
#if PAIRED
  _mm256_stream_si256((__m256i*)p, (__m256i)_mm512_cvtneps_pbh((__m512)v));
#else
  store(p, v);
#endif
}
INLINE void fence() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

INLINE float sum(vf v) {  // halves added to halves: short sums
#if WIDE
  return _mm512_reduce_add_ps((__m512)v);
#else
  float part[VL];
  store(part, v);
  for (int h = VL / 2; h; h /= 2)
    for (int i = 0; i < h; i++) part[i] += part[i + h];
  return part[0];
#endif
}

// VL vectors of VL numbers, transposed in registers.
INLINE void transpose(vf* v) {
#if WIDE
  __m512* r = (__m512*)v;
  __m512 t[16];
  for (int i = 0; i < 8; i++) {
    t[2 * i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
  }
  for (int i = 0; i < 4; i++) {
    r[4 * i + 0] = (__m512)_mm512_unpacklo_pd((__m512d)t[4 * i], (__m512d)t[4 * i + 2]);
    r[4 * i + 1] = (__m512)_mm512_unpackhi_pd((__m512d)t[4 * i], (__m512d)t[4 * i + 2]);
    r[4 * i + 2] = (__m512)_mm512_unpacklo_pd((__m512d)t[4 * i + 1], (__m512d)t[4 * i + 3]);
    r[4 * i + 3] = (__m512)_mm512_unpackhi_pd((__m512d)t[4 * i + 1], (__m512d)t[4 * i + 3]);
  }
  for (int i = 0; i < 4; i++) {
    t[i] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0xdd);
  }
  for (int i = 0; i < 4; i++) {
    r[i] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0x88);
    r[i + 8] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0xdd);
    r[i + 4] = _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0x88);
    r[i + 12] = _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0xdd);
  }
#else
  // log2(VL) rounds, which exchange blocks of h numbers between vectors h apart
#define EXCHANGE(h, low, high)                       \
  for (int i = 0; i < VL; i++)                       \
    if (!(i & h)) {                                  \
      vf a = v[i], b = v[i + h];                     \
      v[i] = __builtin_shufflevector(a, b, low);     \
      v[i + h] = __builtin_shufflevector(a, b, high); \
    }
#define LIST(...) __VA_ARGS__
#if VECTOR == 8
  EXCHANGE(4, LIST(0, 1, 2, 3, 8, 9, 10, 11), LIST(4, 5, 6, 7, 12, 13, 14, 15))
  EXCHANGE(2, LIST(0, 1, 8, 9, 4, 5, 12, 13), LIST(2, 3, 10, 11, 6, 7, 14, 15))
  EXCHANGE(1, LIST(0, 8, 2, 10, 4, 12, 6, 14), LIST(1, 9, 3, 11, 5, 13, 7, 15))
#else
  EXCHANGE(2, LIST(0, 1, 4, 5), LIST(2, 3, 6, 7))
  EXCHANGE(1, LIST(0, 4, 2, 6), LIST(1, 5, 3, 7))
#endif
#undef EXCHANGE
#undef LIST
#endif
}
