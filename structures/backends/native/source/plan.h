// How a call runs: rows or tiles, tokens of a tile, and whether the steps of a tile are split over the threads. What
// decides about the sums (rows or tiles) never looks at the threads: the same bits come out on any number of them.
#pragma once
#include "program.h"

struct Tiles { int64_t tokens, count; };

// n tokens dealt evenly to tiles of at most `most` tokens, whole numbers of 16.
static Tiles dealt(int64_t n, int64_t most, int64_t threads, bool split) {
  int64_t count = std::max<int64_t>(1, (n + most - 1) / most);
  if (!split && count % threads && count < 8 * threads) count = (count / threads + 1) * threads;  // no thread waits for long
  int64_t each = ((n + count - 1) / count + 15) / 16 * 16;
  each = std::max<int64_t>(16, std::min(each, most));
  return {each, (n + each - 1) / each};
}

static int64_t rows_limit(const Program& p, int keeps) {
  // the largest number of tokens for rows
  return p.rows_in_place || (keeps & CANONICAL) ? 15 : 0;
}

static Plan planned(const Program& p, int64_t n, int threads, int keeps) {
  Plan plan = {};
  plan.threads = std::max(threads, 1);
  if (n <= rows_limit(p, keeps)) {
    plan.path = ROWS;
    if (!p.rows_in_place) plan.needs = CANONICAL;
    if (p.weights * (p.dtype == BFLOAT16 ? 2 : 4) * std::max<int64_t>(1, n / 4) < (256 << 10)) plan.threads = 1;
    return plan;
  }
  plan.path = TILES;
  if (p.dtype == BFLOAT16 && p.pairs_bytes) plan.needs = keeps & PAIRS;
  int64_t most = 64;
  if (p.max_block * (p.dtype == BFLOAT16 ? 2 : 4) > caches.l2 / 2 && n >= 128 * plan.threads) most = 128;
  // fewer vectors than a register tile has: 32 tokens reach 62-75 GFLOP/s where 64 reach 98 (1024 wide, AMD Zen 4)
  constexpr int64_t least = TV * VL >= 64 ? 48 : 32;
  if (n < least * plan.threads) plan.split = plan.threads > 1;
  plan.tile = (int32_t)std::min<int64_t>(most, std::max<int64_t>(16, (n + 15) / 16 * 16));
  if (!plan.split) plan.tile = (int32_t)dealt(n, plan.tile, plan.threads, false).tokens;
  if (n * p.multiply_adds < (64 << 10)) plan.threads = 1, plan.split = 0;
  return plan;
}
