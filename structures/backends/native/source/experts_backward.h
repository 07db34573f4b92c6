// Experts' gradients, in chunks of the sorted choices (`routed.h`), so that an expert's gradients are written few times.
// For every chunk as in `backward.h`, with x's rows weighted as they come in: that makes the factors' gradients those of
// the weighted sum. What transposed steps bring back, g, is not weighted yet, since W is linear:
//
//     dweight = x . g            dx = w g + w' g' + ...        for a token's choices, at the end of a batch
#pragma once
#include "backward.h"
#include "routed.h"

// A run of one expert's choices in one chunk, its tokens in tiles of T; `first` and `final` of its expert's.
struct Run {
  int64_t e, at, rows, T, tiles_at;  // where its tiles lie, in numbers
  bool first, final;
  int64_t tiles() const { return parts(rows, T); }
};
struct RoutedTile { const Run* run; int64_t q; };
struct RoutedChunk {
  std::vector<Run> runs;
  std::vector<RoutedTile> tiles;
  int64_t numbers = 0;
};

static int64_t tile_stride(const Program& p, int64_t T) { return lines(2 * p.full_features * T * 4) / 4; }

// Which choices go together depends on the tokens and the program alone.
static std::vector<std::vector<RoutedChunk>> chunked(const Program& p, const Routed& r, const std::vector<Sorted>& batches) {
  int64_t most = 512;
  while (most > 64 && most * 2 * p.full_features * 4 > std::max<int64_t>(caches.l3 / 2, 8 << 20)) most /= 2;
  std::vector<int64_t> left(r.experts, 0);
  std::vector<char> begun(r.experts, 0);
  for (const Sorted& s : batches)
    for (int64_t e = 0; e < r.experts; e++) left[e] += s.count(e);
  std::vector<std::vector<RoutedChunk>> all;
  for (const Sorted& s : batches) {
    std::vector<RoutedChunk> chunks;
    int64_t room = 0;
    for (int64_t e = 0; e < r.experts; e++)
      for (int64_t at = s.start[e]; at < s.start[e + 1];) {
        const int64_t rows = std::min(most, s.start[e + 1] - at), T = dealt(rows, 64, 1, false).tokens;
        if (room < rows) chunks.emplace_back(), room = most;
        RoutedChunk& c = chunks.back();
        left[e] -= rows, room -= parts(rows, T) * T;
        c.runs.push_back({e, at, rows, T, c.numbers, !begun[e], !left[e]});
        begun[e] = 1, at += rows, c.numbers += parts(rows, T) * tile_stride(p, T);
      }
    for (RoutedChunk& c : chunks)
      for (const Run& run : c.runs)
        for (int64_t q = 0; q < run.tiles(); q++) c.tiles.push_back({&run, q});
    all.push_back(std::move(chunks));  // their vectors stay where they are
  }
  return all;
}

// dx and the weights' gradients (either may be nullptr) of tokens [t0, t1) of a batch.
template <class E>
APART void share_out(const Sorted& s, int64_t active, const float* g, const E* x, int64_t ldx, E* dx, float* dweights, int64_t in,
                     int64_t t0, int64_t t1) {
  for (int64_t t = t0; t < t1; t++) {
    const int64_t token = s.first + t;
    const E* from = x + token * ldx;
    E* to = dx ? dx + token * in : nullptr;
    auto each = [&](auto&& body) {  // body(number of the choice, g's row, weight) of those that were not dropped
      for (int64_t k = 0; k < active; k++)
        if (const int32_t at = s.place[t * active + k]; at >= 0) body(k, g + at * in, s.weight[at]);
    };
    if (dweights) {
      for (int64_t k = 0; k < active; k++) dweights[token * active + k] = 0;
      each([&](int64_t k, const float* row, float) {
        vf total = {};
        for (int64_t f0 = 0; f0 < in; f0 += RUN) {  // summed from zero: errors do not grow with the features
          const int64_t f1 = std::min<int64_t>(in, f0 + RUN);
          vf v = {};
          int64_t f = f0;
          for (; f + VL <= f1; f += VL) v += load(from + f) * load(row + f);
          if (f < f1) v += load_part(from + f, (int)(f1 - f)) * load_part(row + f, (int)(f1 - f));
          total += v;
        }
        dweights[token * active + k] = sum(total);
      });
    }
    if (!dx) continue;
    for (int64_t f = 0; f < in; f += VL) {
      const int there = (int)std::min<int64_t>(VL, in - f);
      vf v = {};
      each([&](int64_t, const float* row, float w) { v += (there == VL ? load(row + f) : load_part(row + f, there)) * w; });
      if (there == VL) store(to + f, v);
      else store_part(to + f, v, there);
    }
  }
}

template <class E>
static int backward_experts(const Program& p, const Routed& routed, const void* const* factors, const E* x, int64_t ldx,
                            const E* dy, int64_t ldy, int64_t n, E* dx, E* const* dfactors, float* dweights, int threads) {
  constexpr bool NARROW = sizeof(E) < 4;
  const bool back = dx || dweights;
  const Wanted wanted(p, back, (void* const*)dfactors);
  const std::vector<Sorted> all = batches(routed, n, p.in);
  const std::vector<std::vector<RoutedChunk>> work = chunked(p, routed, all);
  const std::vector<const void*> own = factors_of(p, routed, factors);
  const std::vector<E*> to = factors_of(p, routed, dfactors);
  const Units units_of(p, wanted, threads, 0);
  const int64_t F = (int64_t)p.numbers.size(), steps = (int64_t)p.tile.size();
  const int last = p.last();

  std::vector<char> used(routed.experts, 0);
  int64_t most_choices = 0, most_numbers = 0, many_chunks = 0, many_runs = 0;
  bool several = false;  // runs of one expert
  for (size_t b = 0; b < all.size(); b++) {
    most_choices = std::max(most_choices, all[b].start.back()), many_chunks += (int64_t)work[b].size();
    for (const RoutedChunk& c : work[b]) {
      most_numbers = std::max(most_numbers, c.numbers), many_runs += (int64_t)c.runs.size();
      for (const Run& run : c.runs) used[run.e] = 1, several |= !run.first || !run.final;
    }
  }
  // sums of several runs, where the gradient itself has too few digits for them
  std::vector<int64_t> sums_at(F + 1, 0);
  int64_t sums_bytes = 0;
  for (int64_t f = 0; f < F; f++) {
    sums_at[f] = sums_bytes;
    if (NARROW && dfactors && dfactors[f] && (routed.own[f] ? several : many_runs > 1))
      sums_bytes += lines(p.numbers[f] * 4 * (routed.own[f] ? routed.experts : 1));
  }
  const int64_t formed = formed_bytes(p, 64), mine_bytes = formed + unit_bytes(p), counters = lines(2 * many_chunks * 8);
  const int64_t in_call = routed.experts * p.back_bytes, g_bytes = back ? lines(most_choices * p.in * 4) : 0;
  char* memory = scratch().take(counters + in_call + sums_bytes + g_bytes + lines(most_numbers * 4) + threads * mine_bytes);
  if (!memory) return NO_MEMORY;
  auto* next = (std::atomic<int64_t>*)memory;
  for (int64_t c = 0; c < 2 * many_chunks; c++) next[c] = 0;
  char *copies = memory + counters, *sums = copies + in_call;
  float *g = (float*)(sums + sums_bytes), *tiles = (float*)((char*)g + g_bytes);
  char* team_memory = (char*)tiles + lines(most_numbers * 4);

  parallel(threads, [&](int me, int many) {
    uint32_t* pairs = (uint32_t*)(team_memory + me * mine_bytes);
    float* turned_g = (float*)((char*)pairs + formed);
    for (int64_t e = 0; e < routed.experts; e++)  // of those that nobody chose
      for (int64_t f = 0; f < F; f++)
        if (to[e * F + f] && (routed.own[f] ? !used[e] : !many_runs)) {
          Share mine = share(p.numbers[f], me, many);
          memset((void*)(to[e * F + f] + mine.begin), 0, (mine.end - mine.begin) * sizeof(E));
        }
    if (in_call) {
      for (int64_t e = 0; e < routed.experts; e++)
        if (used[e])
          fill_copies(p, PAIRS_BACK, &own[e * F], copies + e * p.back_bytes, me, many,
                      [&](int i, bool b) { return b ? wanted.backward(p, i) : wanted.forward(p, i); });
      barrier(many);
    }
    int64_t number = 0, runs_done = 0;
    for (size_t b = 0; b < all.size(); b++) {
      const Sorted& s = all[b];
      for (const RoutedChunk& c : work[b]) {
        std::atomic<int64_t>*next_tile = next + 2 * number, *next_unit = next_tile + 1;
        number++;
        auto run_tile = [&](const RoutedTile& t, int me, int many) {
          const Run& run = *t.run;
          const int64_t T = run.T, at = run.at + t.q * T, rows = std::min(T, run.rows - t.q * T);
          const ChunkTile tile{p, wanted, &own[run.e * F], copies + run.e * p.back_bytes, tiles + run.tiles_at + t.q * tile_stride(p, T),
                               p.full_features * T, T, (rows + VL - 1) / VL * VL, pairs};
          auto features = [&](int64_t count) {
            Share of = share(parts(count, RUN), me, many);
            return Share{of.begin * RUN, std::min(count, of.end * RUN)};
          };
          const Share in = features(p.in), out = features(p.out);
          if (wanted.activation[0])
            tile_in(Picked<E, true>{x, ldx, &s.token[at], &s.weight[at]}, (int)rows, tile.activation(0), T, in.begin, in.end);
          tile_in(Picked<E, false>{dy, ldy, &s.token[at], nullptr}, (int)rows, tile.gradient(last), T, out.begin, out.end);
          for (int i = 0; i < steps; i++)
            if (wanted.forward(p, i)) {
              barrier(many);
              Share part = share(units(p.tile[i]), me, many);
              tile.forward(i, part.begin, part.end);
            }
          for (int i = (int)steps - 1; i >= 0; i--)
            if (wanted.backward(p, i)) {
              barrier(many);
              // what a gather writes several times is one thread's
              const int64_t all = units(wanted.back[i]);
              Share part = wanted.back[i].c_stride ? Share{0, me ? 0 : all} : share(all, me, many);
              if (part.begin < part.end) tile.backward(i, part.begin, part.end);
            }
          barrier(many);
          if (back) tile_out(tile.gradient(0), T, (const float*)nullptr, (int)rows, g + at * p.in, p.in, in.begin, in.end, false);
        };
        const int64_t count = (int64_t)c.tiles.size();
        if (2 * count <= many) {
          for (const RoutedTile& t : c.tiles) run_tile(t, me, many);
        } else {
          for (int64_t t; (t = next_tile->fetch_add(1, std::memory_order_relaxed)) < count;) run_tile(c.tiles[t], 0, 1);
        }
        barrier(many);

        const int64_t runs = (int64_t)c.runs.size();
        for (int64_t u; dfactors; ) {
          u = next_unit->fetch_add(1, std::memory_order_relaxed);
          int i = 0;
          int64_t each = 0;
          for (; i < steps; i++) {  // units of the steps before, once for each run where experts have their own factor
            each = units_of.of[i].whole;
            const int64_t these = each * (each && routed.own[p.tile[i].factor] ? runs : 1);
            if (u < these) break;
            u -= these;
          }
          if (i == steps) break;
          const Step& st = p.tile[i];
          const bool alone = routed.own[st.factor];
          for (int64_t r = alone ? u / each : 0; r < (alone ? u / each + 1 : runs); r++) {
            const Run& run = c.runs[r];
            const int64_t T = run.T;
            const Chunk chunk{tiles + run.tiles_at, tile_stride(p, T), T, run.rows, p.full[st.source] * T,
                              (p.full_features + p.full[st.target]) * T};
            const bool first = alone ? run.first : runs_done + r == 0, final = alone ? run.final : runs_done + r + 1 == many_runs;
            float* summed = (float*)(sums + sums_at[st.factor]) + (alone ? run.e * p.numbers[st.factor] : 0);
            factor_unit(p, units_of, i, u % each, chunk, first, final, turned_g, summed, to[run.e * F + st.factor]);
          }
        }
        runs_done += runs;
        barrier(many);
      }
      if (!back) continue;
      Share mine = share(s.tokens, me, many);
      share_out(s, routed.active, g, x, ldx, dx, dweights, p.in, mine.begin, mine.end);
      barrier(many);
    }
  });
  scratch().trim();
  return FINE;
}
