// Copies of factors: pairs of bfloat16 for tiles (widened numbers where the processor multiplies no pairs), and
// [block][contracted][cols] for rows, where a factor is contiguous over neither cols nor contracted axes. A caller may
// keep them as long as the factors stay as they are; else a call makes those it takes in its scratch.
#pragma once
#include "pairs.h"
#include "scratch.h"
#include "threads.h"

static void lay_out(Program& p) {
  auto put = [](Copy& copy, int64_t bytes, int64_t& end) { copy = {true, end, bytes}, end += lines(bytes); };
  int steps = (int)p.tile.size();
  p.pairs.resize(steps), p.pairs_back.resize(steps), p.canonical.resize(p.row.size()), p.canonical_k.resize(p.row.size());
  if (p.dtype == BFLOAT16) {
    for (int i = 0; i < steps; i++) {
      const Step& s = p.tile[i];
#if PAIRED
      if (s.factor >= 0 && !consecutive(s.w_k, s.contracted))
        put(p.pairs[i], s.blocks * ((s.contracted + 1) / 2) * s.cols * 4, p.pairs_bytes);
#else
      if (s.factor >= 0) put(p.pairs[i], p.numbers[s.factor] * 4, p.pairs_bytes);
#endif
    }
    p.back_bytes = p.pairs_bytes;
#if PAIRED
    for (int i = 0; i < steps; i++) {
      const Step& s = p.back[i];
      if (s.factor >= 0 && !consecutive(s.w_k, s.contracted))
        put(p.pairs_back[i], s.blocks * ((s.contracted + 1) / 2) * s.cols * 4, p.back_bytes);
    }
#endif
  }
  int64_t itemsize = p.dtype == BFLOAT16 ? 2 : 4;
  for (size_t i = 0; i < p.row.size(); i++) {
    const Step& s = p.row[i];
    if (s.factor < 0 || consecutive(s.w_m, s.cols)) continue;
    put(p.canonical[i], s.blocks * s.contracted * s.cols * itemsize, p.canonical_bytes);
    for (int64_t k = 0; k < s.contracted; k++) p.canonical_k[i].push_back((int32_t)(k * s.cols));
  }
}

template <class E> static void canonical_copy(const Step& s, const E* W, E* to, int me, int many) {
  int64_t rows = s.entries / s.blocks;
  Share mine = share(s.blocks * s.contracted, me, many);
  for (int64_t u = mine.begin; u < mine.end; u++) {
    const E* w = W + s.w_base[u / s.contracted * rows] + s.w_k[u % s.contracted];
    E* o = to + u * s.cols;
    for (int64_t m = 0; m < s.cols; m++) o[m] = w[s.w_m[m]];
  }
}

// Thread `me`'s part of the copies for which wanted(step, back) holds.
template <class F>
static void fill_copies(const Program& p, Kind kind, const void* const* factors, char* to, int me, int many, F&& wanted) {
  if (kind == CANONICAL) {
    for (size_t i = 0; i < p.row.size(); i++)
      if (p.canonical[i].made && wanted((int)i, false)) {
        const void* W = factors[p.row[i].factor];
        if (p.dtype == BFLOAT16) canonical_copy(p.row[i], (const bf16*)W, (bf16*)(to + p.canonical[i].at), me, many);
        else canonical_copy(p.row[i], (const float*)W, (float*)(to + p.canonical[i].at), me, many);
      }
    return;
  }
  for (int i = 0; i < (int)p.tile.size(); i++) {
    const bf16* W = p.tile[i].factor < 0 ? nullptr : (const bf16*)factors[p.tile[i].factor];
#if PAIRED
    if (p.pairs[i].made && wanted(i, false)) pack_pairs(p.tile[i], W, (uint32_t*)(to + p.pairs[i].at), me, many);
    if (kind == PAIRS_BACK && p.pairs_back[i].made && wanted(i, true))
      pack_pairs(p.back[i], W, (uint32_t*)(to + p.pairs_back[i].at), me, many);
#else
    if (p.pairs[i].made && (wanted(i, false) || wanted(i, true))) {
      Share mine = share(p.numbers[p.tile[i].factor], me, many);
      widen_all(W, (float*)(to + p.pairs[i].at), mine.begin, mine.end);
    }
#endif
  }
}

static int64_t copies_bytes(const Program& p, int kind) {
  return kind == CANONICAL ? p.canonical_bytes : kind == PAIRS ? p.pairs_bytes : kind == PAIRS_BACK ? p.back_bytes : 0;
}

// A step's weights as the product takes them.
struct Weights {
  const void* factor;
  const void* copy;  // nullptr: in place
};
static Weights weights(const Program& p, int i, bool back, const void* const* factors, const char* copies) {
  const Step& s = p.tile[i];
  if (s.factor < 0) return {p.dtype == BFLOAT16 && PAIRED ? (const void*)ONE_BF16 : (const void*)&ONE, nullptr};
  const Copy& copy = back && PAIRED ? p.pairs_back[i] : p.pairs[i];
  return {factors[s.factor], copy.made ? copies + copy.at : nullptr};
}

// Units [u0, u1) of a step on a tile; `formed` holds the pairs of one entry.
static void run([[maybe_unused]] Dtype dtype, const Step& s, Weights w, const float* A, float* C, int64_t T, int64_t tokens,
                [[maybe_unused]] uint32_t* formed, int64_t u0, int64_t u1) {
#if PAIRED
  if (dtype == BFLOAT16) {
    product(Pairs{s, (const bf16*)w.factor, (const uint32_t*)w.copy, A, C, T, formed}, tokens, u0, u1);
    return;
  }
#endif
  product(Floats{s, (const float*)(w.copy ? w.copy : w.factor), A, C, T}, tokens, u0, u1);
}
static int64_t formed_bytes(const Program& p, int64_t T) {
  if (p.dtype != BFLOAT16 || !PAIRED) return 0;
  return lines((std::max(p.max_contracted, p.max_cols) + 1) / 2 * T * 4);
}
