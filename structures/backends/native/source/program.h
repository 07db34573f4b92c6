// What crosses the border from Python, and a structure's program made ready from it.
//
// A step multiplies, for every entry b (a combination of batch and rows), a block of a factor with a piece of A:
//
//   C[c.base[b] + c.off[m]] (+)= sum over k of W[w_base[b] + w_k[k] + w_m[m]] * A[a.base[b] + a.off[k]]
//
// The transposed step, which takes gradients back, is the same record with its two sides exchanged.
#pragma once
#include <algorithm>
#include <cstdint>
#include <new>
#include <vector>
#include "vector.h"

constexpr int32_t VERSION = 2;
enum Dtype : int32_t { FLOAT32 = 0, BFLOAT16 = 1 };
enum Path : int32_t { ROWS = 1, TILES = 2 };
enum Kind : int32_t { CANONICAL = 1, PAIRS = 2, PAIRS_BACK = 4 };
enum Error : int32_t { FINE = 0, NO_MEMORY = 1, NO_COPIES = 2, NOT_POSSIBLE = 3 };

struct Step {
  int64_t entries, cols, contracted, blocks;
  int64_t a_stride, c_stride;  // 0: all entries share their offsets; else the distance to the next entry's
  const int32_t *a_base, *a_off, *c_base, *c_off, *w_base, *w_k, *w_m, *block;
  int32_t factor, source, target, add;

  const int32_t* a_offsets(int64_t b) const { return a_off + b * a_stride; }
  const int32_t* c_offsets(int64_t b) const { return c_off + b * c_stride; }
};
struct Description {
  int32_t size, version, dtype, factors;
  int32_t tile_steps, tile_buffers, row_steps, row_buffers;
  const Step* tile;
  const int64_t* tile_sizes;
  const Step* row;
  const int64_t* row_sizes;
  const int64_t* factor_numbers;
};
struct Plan { int32_t path, tile, split, threads, needs, chunk; };

// How a factor's numbers are read: where they lie, or from a copy.
struct Copy {
  bool made = false;
  int64_t at = 0, bytes = 0;  // in the buffer of copies of its kind
};

static inline bool consecutive(const int32_t* t, int64_t n) {
  for (int64_t i = 1; i < n; i++)
    if (t[i] != t[i - 1] + 1) return false;
  return true;
}

struct Caches { int64_t l1 = 32 << 10, l2 = 1 << 20, l3 = 16 << 20; };
static Caches caches;

struct Program {
  Dtype dtype;
  int64_t in, out;
  std::vector<int64_t> numbers;                  // of each factor
  std::vector<Step> tile, back, row;             // back[i] is tile[i] transposed
  std::vector<int64_t> tile_sizes, row_sizes;    // features of each buffer
  std::vector<int64_t> full, live;               // where each buffer starts, in features: all of them, or while it is read
  int64_t full_features, live_features;
  std::vector<Copy> pairs, pairs_back, canonical;
  int64_t pairs_bytes = 0, back_bytes = 0, canonical_bytes = 0;
  std::vector<std::vector<int32_t>> canonical_k;  // row offsets in the copies
  std::vector<char> tile_waits, row_waits;        // whether a step has to wait for all threads
  std::vector<int32_t> consecutive_cols;          // 0, 1, ... up to the largest number of cols
  std::vector<std::vector<int32_t>> inverse;      // rows: of a last step whose result has a stride, where y's features lie
  std::vector<int64_t> natural;                   // rows: which such result (its start in features), -1 for none
  int64_t natural_features = 0;
  int64_t max_contracted = 0, max_cols = 0, multiply_adds = 0, weights = 0;
  int64_t max_block = 0;  // numbers of the largest block of a factor
  bool rows_in_place = true;

  int32_t last() const { return (int32_t)tile_sizes.size() - 1; }
};

static Step transposed(const Step& s) {
  Step t = s;
  t.source = s.target, t.target = s.source, t.cols = s.contracted, t.contracted = s.cols;
  t.a_base = s.c_base, t.a_off = s.c_off, t.a_stride = s.c_stride;
  t.c_base = s.a_base, t.c_off = s.a_off, t.c_stride = s.a_stride;
  t.w_k = s.w_m, t.w_m = s.w_k, t.add = 0;
  return t;
}

// Buffers share places once they are read for the last time: a chain of two steps needs two of its three at once.
static int64_t place(const Program& p, std::vector<int64_t>& at) {
  int n = (int)p.tile_sizes.size(), steps = (int)p.tile.size();
  std::vector<int> first(n, steps), final(n, -1);
  first[0] = -1, final[n - 1] = steps;
  for (int i = 0; i < steps; i++) {
    const Step& s = p.tile[i];
    first[s.target] = std::min(first[s.target], i), final[s.source] = std::max(final[s.source], i);
  }
  at.assign(n, 0);
  int64_t end = 0;
  std::vector<int> order(n);
  for (int i = 0; i < n; i++) order[i] = i;
  std::sort(order.begin(), order.end(), [&](int a, int b) { return first[a] < first[b]; });
  for (int i = 0; i < n; i++) {
    int b = order[i];
    for (bool moved = true; moved;) {
      moved = false;
      for (int j = 0; j < i; j++) {
        int o = order[j];
        bool together = first[b] <= final[o] && first[o] <= final[b];
        if (together && at[b] < at[o] + p.tile_sizes[o] + 1 && at[o] < at[b] + p.tile_sizes[b] + 1)
          at[b] = at[o] + p.tile_sizes[o] + 1, moved = true;
      }
    }
    end = std::max(end, at[b] + p.tile_sizes[b] + 1);
  }
  return end;
}

static bool checked(const Step* steps, int count, const int64_t* sizes, int buffers, int factors) {
  for (int b = 0; b < buffers; b++)
    if (sizes[b] < 1 || sizes[b] >= INT32_MAX) return false;
  for (int i = 0; i < count; i++) {
    const Step& s = steps[i];
    if (s.source < 0 || s.source >= buffers - 1 || s.target < 1 || s.target >= buffers || s.factor >= factors) return false;
    if (s.blocks < 1 || s.entries % s.blocks || s.cols < 1 || s.contracted < 1) return false;
    for (int64_t b = 0; b < s.entries; b++)
      if (s.block[b] != b / (s.entries / s.blocks)) return false;
  }
  return true;
}

static Program* opened(const Description& d) {
  if (d.size != (int32_t)sizeof(Description) || d.version != VERSION) return nullptr;
  if (d.dtype != FLOAT32 && d.dtype != BFLOAT16) return nullptr;
  if (!checked(d.tile, d.tile_steps, d.tile_sizes, d.tile_buffers, d.factors)) return nullptr;
  if (!checked(d.row, d.row_steps, d.row_sizes, d.row_buffers, d.factors)) return nullptr;
  for (int i = 0; i < d.factors; i++)
    if (d.factor_numbers[i] >= INT32_MAX) return nullptr;
  Program* p = new Program;
  p->dtype = (Dtype)d.dtype;
  p->numbers.assign(d.factor_numbers, d.factor_numbers + d.factors);
  p->tile.assign(d.tile, d.tile + d.tile_steps), p->tile_sizes.assign(d.tile_sizes, d.tile_sizes + d.tile_buffers);
  p->row.assign(d.row, d.row + d.row_steps), p->row_sizes.assign(d.row_sizes, d.row_sizes + d.row_buffers);
  p->in = p->tile_sizes.front(), p->out = p->tile_sizes.back();
  for (int64_t n : p->numbers) p->weights += n;
  for (const Step& s : p->tile) {
    p->back.push_back(transposed(s));
    p->max_contracted = std::max(p->max_contracted, s.contracted), p->max_cols = std::max(p->max_cols, s.cols);
    p->max_block = std::max(p->max_block, s.contracted * s.cols);
    p->multiply_adds += s.entries * s.cols * s.contracted;
  }
  int64_t start = 0;
  for (int64_t n : p->tile_sizes) p->full.push_back(start), start += n + 1;
  p->full_features = start;
  p->live_features = place(*p, p->live);
  for (int64_t i = 0; i < std::max(p->max_cols, p->max_contracted); i++) p->consecutive_cols.push_back((int32_t)i);
  return p;
}
