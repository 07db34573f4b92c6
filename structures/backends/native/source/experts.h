// Experts' forward: portions of the sorted choices (`routed.h`), each one expert's, by tiles or by rows as any other call;
// threads take them as they come, or all of them work on each where there are fewer portions than threads.
#pragma once
#include "forward.h"
#include "routed.h"
#include "rows.h"

// Choices [at, at + rows) of expert e: on a tile of so many tokens, or by rows (0).
struct Portion { int64_t e, at, rows, tile; };

static std::vector<Portion> portions(const Program& p, const Sorted& s, int64_t experts) {
  const int64_t itemsize = p.dtype == BFLOAT16 ? 2 : 4, limit = rows_limit(p, 0);
  std::vector<Portion> all;
  for (int64_t e = 0; e < experts; e++) {
    const int64_t n = s.count(e);
    if (n <= limit) {
      if (n) all.push_back({e, s.start[e], n, 0});
      continue;
    }
    const Tiles tiles = dealt(n, p.max_block * itemsize > caches.l2 / 2 && n >= 128 ? 128 : 64, 1, false);
    for (int64_t at = 0; at < n; at += tiles.tokens) all.push_back({e, s.start[e] + at, std::min(tiles.tokens, n - at), tiles.tokens});
  }
  std::stable_sort(all.begin(), all.end(), [](const Portion& a, const Portion& b) { return a.rows > b.rows; });  // the long ones first
  return all;
}

// y of tokens [t0, t1) of a batch: their choices' rows of z, weighted, and the bias.
template <class E>
APART void sum_up(const Sorted& s, int64_t active, const float* z, const E* bias, E* y, int64_t out, int64_t t0, int64_t t1, bool past) {
  std::vector<std::pair<const float*, float>> rows(active);
  for (int64_t t = t0; t < t1; t++) {
    int count = 0;
    for (int64_t k = 0; k < active; k++) {
      const int32_t at = s.place[t * active + k];
      if (at >= 0) rows[count++] = {z + at * out, s.weight[at]};
    }
    E* to = y + (s.first + t) * out;
    int64_t f = 0;
    for (; f + VL <= out; f += VL) {
      vf v = {};
      for (int i = 0; i < count; i++) v += load(rows[i].first + f) * rows[i].second;
      if (bias) v += load(bias + f);
      if (past) stream(to + f, v);
      else store(to + f, v);
    }
    if (const int left = (int)(out - f)) {
      vf v = {};
      for (int i = 0; i < count; i++) v += load_part(rows[i].first + f, left) * rows[i].second;
      store_part(to + f, bias ? v + load_part(bias + f, left) : v, left);
    }
  }
}

// `copies`: pairs of every expert's factors, one expert's after another's; nullptr: made here, of the experts with tiles.
template <class E>
static int forward_experts(const Program& p, const Routed& routed, const void* const* factors, const char* copies, const E* x, int64_t ld,
                           int64_t n, const E* bias, E* y, int threads) {
  const std::vector<Sorted> all = batches(routed, n, p.out);
  const std::vector<const void*> own = factors_of(p, routed, factors);
  std::vector<std::vector<Portion>> work;
  std::vector<char> tiled(routed.experts, 0);
  int64_t most_rows = 0, most_tile = 0, most_choices = 0, multiply_adds = 0, read = 0;
  for (const Sorted& s : all) {
    work.push_back(portions(p, s, routed.experts));
    most_choices = std::max(most_choices, s.start.back()), multiply_adds += s.start.back() * p.multiply_adds;
    for (const Portion& c : work.back()) {
      if (c.tile) tiled[c.e] = 1, most_tile = std::max(most_tile, c.tile);
      else most_rows = std::max(most_rows, c.rows), read += p.weights * (int64_t)sizeof(E) * std::max<int64_t>(1, c.rows / 4);
    }
  }
  if (most_tile ? multiply_adds < (64 << 10) : read < (256 << 10)) threads = 1;
  const int64_t F = (int64_t)p.numbers.size(), one = p.pairs_bytes;
  const int64_t in_call = copies || !most_tile ? 0 : routed.experts * one;
  const int64_t z_bytes = lines(most_choices * p.out * 4);
  const RowsCall<E, float> widest(p, factors, nullptr, (int)most_rows, true);
  const int64_t shared = std::max(lines(p.live_features * most_tile * 4), most_rows ? widest.shared_bytes : 0);
  const int64_t mine = std::max(formed_bytes(p, most_tile), most_rows ? widest.own_bytes : 0);
  const int64_t counters = lines((int64_t)all.size() * 8);
  char* memory = scratch().take(counters + in_call + z_bytes + threads * (shared + mine));
  if (!memory) return NO_MEMORY;
  auto* next = (std::atomic<int64_t>*)memory;
  for (size_t b = 0; b < all.size(); b++) next[b] = 0;
  char* made = memory + counters;
  if (in_call) copies = made;
  float* z = (float*)(memory + counters + in_call);
  char* team_memory = (char*)z + z_bytes;
  const bool past = past_cache(y, n, p.out, caches.l3);

  parallel(threads, [&](int me, int many) {
    if (in_call) {
      for (int64_t e = 0; e < routed.experts; e++)
        if (tiled[e]) fill_copies(p, PAIRS, &own[e * F], made + e * one, me, many, [](int, bool) { return true; });
      barrier(many);
    }
    char* my_memory = team_memory + many * shared + me * mine;
    auto run_portion = [&](const Sorted& s, const Portion& c, char* memory, int me, int many) {
      const void* const* W = &own[c.e * F];
      const Picked<E, false> rows{x, ld, &s.token[c.at], nullptr};
      if (!c.tile) {
        RowsCall<E, float>(p, W, nullptr, (int)c.rows, true).run(rows, z + c.at * p.out, (const float*)nullptr, memory, my_memory, me, many);
        return;
      }
      const int64_t T = c.tile, whole = (c.rows + VL - 1) / VL * VL;
      float* tile = (float*)memory;
      auto features = [&](int64_t count) {
        Share of = share(parts(count, RUN), me, many);
        return Share{of.begin * RUN, std::min(count, of.end * RUN)};
      };
      Share in = features(p.in), out = features(p.out);
      tile_in(rows, (int)c.rows, tile + p.live[0] * T, T, in.begin, in.end);
      for (int i = 0; i < (int)p.tile.size(); i++) {
        const Step& st = p.tile[i];
        barrier(many);
        Share part = share(units(st), me, many);
        run(p.dtype, st, weights(p, i, false, W, copies + c.e * one), tile + p.live[st.source] * T, tile + p.live[st.target] * T, T, whole,
            (uint32_t*)my_memory, part.begin, part.end);
      }
      barrier(many);
      tile_out(tile + p.live[p.last()] * T, T, (const float*)nullptr, (int)c.rows, z + c.at * p.out, p.out, out.begin, out.end, false);
    };
    for (size_t b = 0; b < all.size(); b++) {
      const int64_t count = (int64_t)work[b].size();
      if (2 * count <= many) {
        for (const Portion& c : work[b]) {
          run_portion(all[b], c, team_memory, me, many);
          barrier(many);
        }
      } else {
        for (int64_t c; (c = next[b].fetch_add(1, std::memory_order_relaxed)) < count;)
          run_portion(all[b], work[b][c], team_memory + me * shared, 0, 1);
      }
      barrier(many);
      Share mine = share(all[b].tokens, me, many);
      sum_up(all[b], routed.active, z, bias, y, p.out, mine.begin, mine.end, past);
      barrier(many);
    }
    if (past) fence();
  });
  scratch().trim();
  return FINE;
}
