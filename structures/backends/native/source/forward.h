// Many tokens: tiles of tokens go through all steps, each on one thread, so that what lies between two steps stays in its
// caches. With fewer tiles than threads every step is split over them instead, with a barrier between dependent steps.
#pragma once
#include "copies.h"
#include "plan.h"
#include "scratch.h"
#include "transpose.h"

template <class E>
static int forward_tiles(const Program& p, const void* const* factors, const char* copies, const E* x, int64_t ld, int64_t n,
                         const E* bias, E* y, const Plan& plan) {
  const Tiles tiles = dealt(n, plan.tile, plan.threads, plan.split);
  const int64_t T = tiles.tokens, count = tiles.count, threads = plan.split ? plan.threads : std::min<int64_t>(plan.threads, count);
  const std::vector<int64_t>& at = plan.split ? p.full : p.live;
  const int64_t tile_bytes = lines((plan.split ? p.full_features : p.live_features) * T * 4), formed = formed_bytes(p, T);
  const int64_t own = copies ? 0 : p.pairs_bytes, steps = (int64_t)p.tile.size();
  char* memory = scratch().take(own + (plan.split ? count : threads) * tile_bytes + threads * formed);
  if (!memory) return NO_MEMORY;
  char *in_call = memory, *tile_memory = memory + own, *pair_memory = tile_memory + (plan.split ? count : threads) * tile_bytes;
  const bool past = past_cache(y, n, p.out, caches.l3);
  const int last = p.last();

  parallel(threads, [&](int me, int many) {
    uint32_t* pairs = (uint32_t*)(pair_memory + me * formed);
    if (own) {
      fill_copies(p, PAIRS, factors, in_call, me, many, [](int, bool) { return true; });
      barrier(many);
    }
    const char* ready = own ? in_call : copies;
    if (!plan.split) {
      float* tile = (float*)(tile_memory + me * tile_bytes);
      Share mine = share(count, me, many);
      for (int64_t q = mine.begin; q < mine.end; q++) {
        int64_t t0 = q * T;
        int rows = (int)std::min(T, n - t0), whole = (rows + VL - 1) / VL * VL;
        tile_in(Apart<E>{x + t0 * ld, ld}, rows, tile + at[0] * T, T, 0, p.in);
        for (int i = 0; i < steps; i++) {
          const Step& s = p.tile[i];
          run(p.dtype, s, weights(p, i, false, factors, ready), tile + at[s.source] * T, tile + at[s.target] * T, T, whole, pairs, 0, units(s));
        }
        tile_out(tile + at[last] * T, T, bias, rows, y + t0 * p.out, p.out, 0, p.out, past);
      }
    } else {
      auto each = [&](int64_t per_tile, auto&& body) {  // body(tile, its memory, from, to) on this thread's share
        Share mine = share(count * per_tile, me, many);
        for (int64_t u = mine.begin; u < mine.end;) {
          int64_t q = u / per_tile, from = u % per_tile, to = std::min(per_tile, from + mine.end - u);
          body(q, (float*)(tile_memory + q * tile_bytes), from, to);
          u += to - from;
        }
      };
      each(parts(p.in, RUN), [&](int64_t q, float* tile, int64_t from, int64_t to) {
        tile_in(Apart<E>{x + q * T * ld, ld}, (int)std::min(T, n - q * T), tile + at[0] * T, T, from * RUN, std::min(p.in, to * RUN));
      });
      for (int i = 0; i < steps; i++) {
        const Step& s = p.tile[i];
        if (i == 0 || p.tile_waits[i]) barrier(many);
        each(units(s), [&](int64_t q, float* tile, int64_t from, int64_t to) {
          int64_t whole = (std::min(T, n - q * T) + VL - 1) / VL * VL;
          run(p.dtype, s, weights(p, i, false, factors, ready), tile + at[s.source] * T, tile + at[s.target] * T, T, whole, pairs, from, to);
        });
      }
      barrier(many);
      each(parts(p.out, RUN), [&](int64_t q, float* tile, int64_t from, int64_t to) {
        tile_out(tile + at[last] * T, T, bias, (int)std::min(T, n - q * T), y + q * T * p.out, p.out, from * RUN, std::min(p.out, to * RUN), past);
      });
    }
    if (past) fence();
  });
  scratch().trim();
  return FINE;
}
