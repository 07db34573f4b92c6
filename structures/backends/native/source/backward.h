// Gradients of x, the bias and the factors from x, dy and the factors alone. Tokens go in chunks. For every chunk
//
//   1. each tile: x and dy come in, intermediates are computed again, transposed steps take the gradient back, dx goes out;
//      all activations and gradients of the chunk stay in one shared buffer;
//   2. factors' gradients are shared out over (block of a factor, 64 cols, some rows), each written by one thread. (Against
//      sums of each thread's own, added at the end: 1024 x 128 dense 1903 -> 1282 us, DYAD 904 -> 632; AMD Zen 5, 2 threads.)
//      Small blocks are shared out over spans of tokens too, so that a thread reads tiles of its own, and their sums are
//      added afterwards. (Kronecker 1024 x 128 292 -> 270 us, BTT 1024 x 512 1150 -> 1100; AMD Zen 4, 2 threads.)
//
// The spans are those of the tokens, not of the threads: the bits do not depend on how many there are.
#pragma once
#include "copies.h"
#include "gradient.h"
#include "plan.h"
#include "scratch.h"
#include "transpose.h"

// What has to be computed for the gradients that are asked for.
struct Wanted {
  std::vector<char> factor;    // of each step
  std::vector<char> gradient;  // of each buffer
  std::vector<char> activation;
  std::vector<Step> back;  // the transposed steps, which add unless they are the first to write

  Wanted(const Program& p, bool dx, void* const* dfactors) {
    const int steps = (int)p.tile.size(), buffers = (int)p.tile_sizes.size();
    factor.assign(steps, 0), gradient.assign(buffers, 0), activation.assign(buffers, 0);
    gradient[0] = dx;
    for (int i = 0; i < steps; i++) {
      const Step& s = p.tile[i];
      factor[i] = s.factor >= 0 && dfactors && dfactors[s.factor];
      gradient[s.target] |= factor[i] || gradient[s.source];
    }
    for (int i = steps - 1; i >= 0; i--) {
      const Step& s = p.tile[i];
      activation[s.source] |= factor[i] || (s.target != p.last() && activation[s.target]);
    }
    back = p.back;
    std::vector<char> written(buffers, 0);
    for (int i = steps - 1; i >= 0; i--) {
      if (!gradient[p.tile[i].source]) continue;
      back[i].add = written[back[i].target] || back[i].c_stride > 0;
      written[back[i].target] = 1;
    }
  }
  bool forward(const Program& p, int i) const { return p.tile[i].target != p.last() && activation[p.tile[i].target]; }
  bool backward(const Program& p, int i) const { return gradient[p.tile[i].source]; }
  // whether the transposed step is the first to write to its target, which a gather may write in part or repeatedly
  bool zero(const Program& p, int i) const {
    if (!back[i].c_stride) return false;
    for (int j = i + 1; j < (int)back.size(); j++)
      if (backward(p, j) && back[j].target == back[i].target) return false;
    return true;
  }
};

// Tokens of a chunk and of a tile. The chunk depends on the tokens and the program alone.
struct Chunks {
  int64_t tokens, tile;
  bool split;
};
static Chunks chunks(const Program& p, int64_t n, int64_t threads, int64_t how) {
  Chunks c;
  c.tokens = n <= 256 ? 128 : 512;
  const int64_t token = 2 * p.full_features * 4;  // bytes
  while (c.tokens > 64 && c.tokens * token > std::max<int64_t>(caches.l3 / 2, 8 << 20)) c.tokens /= 2;
  int64_t n_chunk = std::min(n, c.tokens);
  c.tile = 64;
  while (c.tile > 16 && (n_chunk + c.tile - 1) / c.tile < threads) c.tile /= 2;
  c.split = (n_chunk + c.tile - 1) / c.tile < threads;
  if (c.split) c.tile = std::min<int64_t>(64, n_chunk > 32 ? 64 : n_chunk > 16 ? 32 : 16);
  if (how) {
    c.tile = how >> 8 & 0xfff, c.split = how >> 20 & 1;
    if (how >> 24) c.tokens = how >> 24;
  }
  c.split = c.split && threads > 1;
  return c;
}

// The units of phase 2: (step, block, cols, rows of the block). The rows are cut, so that a unit's sums stay in the L1. Where
// a block's sums are less than what they are made of, they are made apart for every span of tokens; where few units come of
// that (one of a step of Kronecker's), for parts of the block's entries too. (Cutting its rows instead turned the gradient
// once for every cut.)
constexpr int64_t UNIT_ROWS = 192, MANY = 32, SPANS = 4;
struct StepUnits {
  int64_t rows, whole;  // parts of the rows; units of all entries and tokens
  int64_t parts;        // of a block's entries; 0: its sums are not made apart
  int64_t end;          // units up to and with the step's: of those with or without sums apart, of one span
  int64_t each, at;     // numbers of a unit's sums, and where the first one's lie
};
struct Units {
  std::vector<StepUnits> of;
  int64_t span = 0;              // tokens
  int64_t plain = 0, apart = 0;  // units without sums apart, and with them, of one span
  int64_t merged = 0;            // whole units whose sums are made apart
  int64_t numbers = 0;           // of all sums that are made apart

  // tokens: of a chunk; 0: nothing is summed apart
  Units(const Program& p, const Wanted& wanted, int64_t threads, int64_t tokens) {
    span = std::max<int64_t>(SUMMED, tokens / SPANS / SUMMED * SUMMED);
    const int64_t spans = tokens ? parts(tokens, span) : 1;
    int64_t few = 0;
    for (size_t i = 0; i < p.tile.size(); i++) {
      const Step& s = p.tile[i];
      const int64_t entries = s.entries / s.blocks, col_parts = parts(s.cols, COLS);
      StepUnits u = {parts(s.contracted, UNIT_ROWS), 0, 0, 0, 0, 0};
      if (2 * s.contracted * pitch(s) <= (s.contracted + pitch(s)) * std::min(tokens, span) * entries) {
        u.parts = std::min(entries, parts(MANY, s.blocks * col_parts * u.rows * spans));
        if (u.parts * spans == 1) u.parts = 0;
      }
      if (wanted.factor[i] && !u.parts) few += s.blocks * col_parts;
      of.push_back(u);
    }
    for (size_t i = 0; i < p.tile.size(); i++) {
      const Step& s = p.tile[i];
      StepUnits& u = of[i];
      if (!u.parts && few && few < 2 * threads && threads > 1)
        u.rows = std::max(u.rows, std::min(parts(2 * threads, few), s.contracted / 12));
      u.whole = wanted.factor[i] ? s.blocks * parts(s.cols, COLS) * u.rows : 0;
      if (!u.parts) {
        u.end = plain += u.whole;
        continue;
      }
      u.end = apart += u.whole * u.parts;
      merged += u.whole;
      u.each = parts(s.contracted, u.rows) * pitch(s), u.at = numbers;
      numbers += u.each * u.whole * u.parts * spans;
    }
  }
  // The step that unit u of the plain ones or of those summed apart is of; u becomes its number there.
  int step(int64_t& u, bool sums_apart) const {
    int64_t begin = 0;
    int i = 0;
    for (;; i++) {
      if ((of[i].parts > 0) != sums_apart) continue;
      if (u < of[i].end) break;
      begin = of[i].end;
    }
    u -= begin;
    return i;
  }
  // Numbers of a row of sums that are made apart.
  static int64_t pitch(const Step& s) { return parts(std::min<int64_t>(s.cols, COLS), VL) * VL; }
  // A step's whole unit.
  Unit unit(const Step& s, int i, int64_t whole, int64_t tokens) const {
    const int64_t rows = of[i].rows, col_parts = parts(s.cols, COLS), entries = s.entries / s.blocks;
    const int64_t k = whole % rows, m0 = whole / rows % col_parts * COLS, block = whole / rows / col_parts;
    return {block * entries, (block + 1) * entries, m0, s.contracted * k / rows, s.contracted * (k + 1) / rows, 0, tokens,
            (int)std::min<int64_t>(COLS, s.cols - m0)};
  }
};

// A tile of a chunk: its activations, and `half` numbers behind them their gradients.
struct ChunkTile {
  const Program& p;
  const Wanted& wanted;
  const void* const* factors;
  const char* copies;
  float* at;
  int64_t half, T, whole;  // whole: tokens, in whole vectors
  uint32_t* formed;

  float* activation(int buffer) const { return at + p.full[buffer] * T; }
  float* gradient(int buffer) const { return at + half + p.full[buffer] * T; }
  void forward(int i, int64_t from, int64_t to) const {
    const Step& s = p.tile[i];
    run(p.dtype, s, weights(p, i, false, factors, copies), activation(s.source), activation(s.target), T, whole, formed, from, to);
  }
  void backward(int i, int64_t from, int64_t to) const {
    const Step& s = wanted.back[i];
    if (wanted.zero(p, i)) memset(gradient(s.target), 0, p.tile_sizes[s.target] * T * 4);  // then from is 0
    run(p.dtype, s, weights(p, i, true, factors, copies), gradient(s.source), gradient(s.target), T, whole, formed, from, to);
  }
};

template <class E>
static void sums_to(const Step& s, const Chunk& chunk, const Unit& unit, float* turned_g, float* D) {
#if PAIRED
  if (sizeof(E) < 4) return unit_sums<PairSums>(s, chunk, unit, turned_g, D);
#endif
  unit_sums<FloatSums>(s, chunk, unit, turned_g, D);
}
// A unit's sums to the factor's gradient: written, or added to it if their tokens are not the `first`. bfloat16 is summed
// in `sums`, until the tokens are the `final` ones.
template <class E>
static void sums_from(const Step& s, const Unit& unit, const float* D, bool first, bool final, float* sums, E* to) {
  if (sizeof(E) == 4) write_unit(s, unit, D, first, (float*)(void*)to, to);
  else if (first && final) write_unit(s, unit, D, true, nullptr, to);
  else write_unit(s, unit, D, first, sums, final ? to : nullptr);
}
// Unit u of those of step i whose sums are not made apart.
template <class E>
static void factor_unit(const Program& p, const Units& units, int i, int64_t u, const Chunk& chunk, bool first, bool final,
                        float* turned_g, float* sums, E* to) {
  float* D = turned_g + SUMMED * COLS;
  const Unit unit = units.unit(p.tile[i], i, u, chunk.tokens);
  sums_to<E>(p.tile[i], chunk, unit, turned_g, D);
  sums_from(p.tile[i], unit, D, first, final, sums, to);
}
// Unit u, of a span of tokens, of step i: its sums to their own place, rows `pitch` apart.
template <class E>
static void sum_apart(const Program& p, const Units& units, int i, int64_t u, int64_t span, const Chunk& chunk, float* turned_g,
                      float* apart) {
  float* D = turned_g + SUMMED * COLS;
  const Step& s = p.tile[i];
  const StepUnits& of = units.of[i];
  const int64_t part = u % of.parts, pitch = Units::pitch(s);
  Unit unit = units.unit(s, i, u / of.parts, chunk.tokens);
  const int64_t b0 = unit.b0, entries = unit.b1 - b0;
  unit.b0 = b0 + entries * part / of.parts, unit.b1 = b0 + entries * (part + 1) / of.parts;
  unit.tokens_begin = span * units.span, unit.tokens_end = std::min(chunk.tokens, unit.tokens_begin + units.span);
  sums_to<E>(s, chunk, unit, turned_g, D);
  float* to = apart + of.at + (span * of.whole * of.parts + u) * of.each;
  for (int64_t k = 0; k < unit.k1 - unit.k0; k++)
    for (int m = 0; m < unit.cols; m += VL) store(to + k * pitch + m, load(D + k * COLS + m));
}
// The sums of whole unit u of step i, of all spans and parts in their order, to the factor's gradient.
template <class E>
static void merge(const Program& p, const Units& units, int i, int64_t u, int64_t spans, const Chunk& chunk, bool first, bool final,
                  float* D, const float* apart, float* sums, E* to) {
  const Step& s = p.tile[i];
  const StepUnits& of = units.of[i];
  const Unit unit = units.unit(s, i, u, chunk.tokens);
  const int64_t pitch = Units::pitch(s);
  const float* from = apart + of.at + u * of.parts * of.each;
  for (int64_t k = 0; k < unit.k1 - unit.k0; k++)
    for (int m = 0; m < unit.cols; m += VL) {
      vf v = load(from + k * pitch + m);
      for (int64_t j = 1; j < spans * of.parts; j++)
        v += load(from + (j / of.parts * of.whole * of.parts + j % of.parts) * of.each + k * pitch + m);
      store(D + k * COLS + m, v);
    }
  sums_from(s, unit, D, first, final, sums, to);
}
static int64_t unit_bytes(const Program& p) { return lines((SUMMED + std::min(p.max_contracted, UNIT_ROWS)) * COLS * 4); }

template <class E>
static int backward(const Program& p, const void* const* factors, const char* copies, const E* x, int64_t ldx, const E* dy,
                    int64_t ldy, int64_t n, E* dx, E* const* dfactors, E* dbias, int64_t threads, int64_t how) {
  constexpr bool NARROW = sizeof(E) < 4;
  const Wanted wanted(p, dx != nullptr, (void* const*)dfactors);
  const Chunks cut = chunks(p, n, threads, how);
  const Units units_of(p, wanted, threads, std::min(n, cut.tokens));
  const int steps = (int)p.tile.size(), last = p.last();
  const int64_t T = cut.tile, in_chunk = parts(std::min(n, cut.tokens), T), many_chunks = parts(n, cut.tokens);
  const int64_t half = p.full_features * T, stride = lines(2 * half * 4) / 4;
  const int64_t own_copies = copies ? 0 : p.back_bytes;
  // sums of several chunks, where the gradient itself has too few digits for them
  std::vector<int64_t> sums_at(p.numbers.size() + 1, 0);
  int64_t sums_bytes = 0;
  if (NARROW && many_chunks > 1) {
    for (size_t f = 0; f < p.numbers.size(); f++)
      if (dfactors && dfactors[f]) sums_at[f] = sums_bytes, sums_bytes += lines(p.numbers[f] * 4);
    if (dbias) sums_at.back() = sums_bytes, sums_bytes += lines(p.out * 4);
  }
  const int64_t formed = formed_bytes(p, T), per_thread = formed + unit_bytes(p);
  const int64_t counters = lines(many_chunks * 8), apart_bytes = lines(units_of.numbers * 4);
  char* memory = scratch().take(counters + own_copies + sums_bytes + apart_bytes + in_chunk * stride * 4 + threads * per_thread);
  if (!memory) return NO_MEMORY;
  auto* next = (std::atomic<int64_t>*)memory;
  for (int64_t c = 0; c < many_chunks; c++) next[c] = 0;
  char* in_call = memory + counters;
  char* sums = in_call + own_copies;
  float* apart = (float*)(sums + sums_bytes);
  float* tiles = (float*)(sums + sums_bytes + apart_bytes);
  char* private_memory = (char*)(tiles + in_chunk * stride);
  const bool past = dx && past_cache(dx, n, p.in, caches.l3);
  const bool needs_dy = dbias || std::any_of(wanted.gradient.begin() + 1, wanted.gradient.end(), [](char c) { return c; });

  parallel(threads, [&](int me, int many) {
    uint32_t* pairs = (uint32_t*)(private_memory + me * per_thread);
    float* turned_g = (float*)(private_memory + me * per_thread + formed);
    if (own_copies) {
      fill_copies(p, PAIRS_BACK, factors, in_call, me, many,
                  [&](int i, bool back) { return back ? wanted.backward(p, i) : wanted.forward(p, i); });
      barrier(many);
    }
    const char* ready = own_copies ? in_call : copies;

    for (int64_t c = 0; c < many_chunks; c++) {
      const int64_t c0 = c * cut.tokens, cn = std::min(cut.tokens, n - c0), nt = parts(cn, T);
      auto rows_of = [&](int64_t q) { return (int)std::min(T, cn - q * T); };
      auto whole_of = [&](int64_t q) { return (int64_t)(rows_of(q) + VL - 1) / VL * VL; };
      auto tile_of = [&](int64_t q) {
        return ChunkTile{p, wanted, factors, ready, tiles + q * stride, half, T, whole_of(q), pairs};
      };
      auto bring_x = [&](int64_t q, int64_t f0, int64_t f1) {
        if (wanted.activation[0]) tile_in(Apart<E>{x + (c0 + q * T) * ldx, ldx}, rows_of(q), tile_of(q).activation(0), T, f0, f1);
      };
      auto bring_dy = [&](int64_t q, int64_t f0, int64_t f1) {
        if (needs_dy) tile_in(Apart<E>{dy + (c0 + q * T) * ldy, ldy}, rows_of(q), tile_of(q).gradient(last), T, f0, f1);
      };
      auto take_dx = [&](int64_t q, int64_t f0, int64_t f1) {
        tile_out(tile_of(q).gradient(0), T, (const E*)nullptr, rows_of(q), dx + (c0 + q * T) * p.in, p.in, f0, f1, past);
      };

      if (!cut.split) {
        Share mine = share(nt, me, many);
        for (int64_t q = mine.begin; q < mine.end; q++) {
          bring_x(q, 0, p.in);
          for (int i = 0; i < steps; i++)
            if (wanted.forward(p, i)) tile_of(q).forward(i, 0, units(p.tile[i]));
          bring_dy(q, 0, p.out);
          for (int i = steps - 1; i >= 0; i--)
            if (wanted.backward(p, i)) tile_of(q).backward(i, 0, units(wanted.back[i]));
          if (dx) take_dx(q, 0, p.in);
        }
      } else {
        auto each = [&](int64_t per_tile, auto&& body) {  // body(tile, from, to) on this thread's share
          Share mine = share(nt * per_tile, me, many);
          for (int64_t u = mine.begin; u < mine.end;) {
            int64_t q = u / per_tile, from = u % per_tile, to = std::min(per_tile, from + mine.end - u);
            body(q, from, to);
            u += to - from;
          }
        };
        auto features = [&](int64_t count, auto&& body) {
          each(parts(count, RUN), [&](int64_t q, int64_t from, int64_t to) { body(q, from * RUN, std::min(count, to * RUN)); });
        };
        features(p.in, bring_x);
        features(p.out, bring_dy);
        for (int i = 0; i < steps; i++)
          if (wanted.forward(p, i)) {
            barrier(many);
            each(units(p.tile[i]), [&](int64_t q, int64_t from, int64_t to) { tile_of(q).forward(i, from, to); });
          }
        for (int i = steps - 1; i >= 0; i--)
          if (wanted.backward(p, i)) {
            barrier(many);
            // what a gather writes several times is one thread's
            const int64_t all = units(wanted.back[i]), one = wanted.back[i].c_stride ? 1 : all;
            each(one, [&](int64_t q, int64_t from, int64_t to) { tile_of(q).backward(i, from, one == all ? to : all); });
          }
        if (dx) {
          barrier(many);
          features(p.in, take_dx);
        }
      }
      barrier(many);

      const bool first = c == 0, final = c + 1 == many_chunks;
      auto chunk_of = [&](const Step& s) { return Chunk{tiles, stride, T, cn, p.full[s.source] * T, half + p.full[s.target] * T}; };
      auto sums_of_factor = [&](const Step& s) { return (float*)(sums + sums_at[s.factor]); };
      const int64_t spans = parts(cn, units_of.span);
      const Share of_spans = share(spans * units_of.apart, me, many);  // of whole spans, as tiles are
      for (int64_t at = of_spans.begin; at < of_spans.end; at++) {
        int64_t u = at % units_of.apart;
        const int i = units_of.step(u, true);
        sum_apart<E>(p, units_of, i, u, at / units_of.apart, chunk_of(p.tile[i]), turned_g, apart);
      }
      for (int64_t u; (u = next[c].fetch_add(1, std::memory_order_relaxed)) < units_of.plain;) {
        const int i = units_of.step(u, false);
        const Step& s = p.tile[i];
        factor_unit(p, units_of, i, u, chunk_of(s), first, final, turned_g, sums_of_factor(s), dfactors[s.factor]);
      }
      if (dbias) {
        Share mine = share(parts(p.out, 32), me, many);
        float* summed = NARROW && many_chunks > 1 ? (float*)(sums + sums_at.back()) : nullptr;
        for (int64_t f = mine.begin * 32; f < std::min(p.out, mine.end * 32); f++) {
          vf a = {};
          for (int64_t q = 0; q < nt; q++) {
            const float* g = tiles + q * stride + half + (p.full[last] + f) * T;
            for (int64_t t = 0; t < whole_of(q); t += VL) a += load(g + t);
          }
          float v = sum(a);
          if (!first) v += summed ? summed[f] : widen(dbias[f]);
          if (summed) summed[f] = v;
          if constexpr (NARROW) dbias[f] = narrow(v);
          else dbias[f] = v;
        }
      }
      barrier(many);
      if (!units_of.apart) continue;
      const Share of_merged = share(units_of.merged, me, many);
      int64_t at = of_merged.begin, before = 0;
      for (int i = 0; i < steps; i++) {
        const Step& s = p.tile[i];
        const int64_t whole = units_of.of[i].parts ? units_of.of[i].whole : 0;
        for (; at < std::min(of_merged.end, before + whole); at++)
          merge(p, units_of, i, at - before, spans, chunk_of(s), first, final, turned_g + SUMMED * COLS, apart, sums_of_factor(s),
                dfactors[s.factor]);
        before += whole;
      }
      barrier(many);
    }
    if (past) fence();
  });
  scratch().trim();
  return FINE;
}
