// Few tokens: C[t][m] += A[t][k] W[k][m], cols in vectors, so that every weight is read once and no lane is empty.
//
//              W   k | m0-15  m16-31  m32-47  m48-63       one row of a block of the factor, where it lies
//                    |  |       |       |       |
//     A  t0 [ k ] ---> sum     sum     sum     sum
//        t1 [ k ] ---> sum     sum     sum     sum         up to 6 tokens x 4 vectors of sums (1 or 2 tokens: 8 vectors)
//        one number,   ...
//        broadcast
//
// K goes in blocks of 256, each summed from zero. Threads share out (entry, 64 cols). Results that are written with a
// stride go to a buffer in their natural order first, and every thread gathers its own range of y from it: several
// threads that store into one line made 256 x 16 Monarch take 109 us instead of 5.7 (AMD Zen 5).
#pragma once
#include "copies.h"
#include "plan.h"
#include "scratch.h"
#include "transpose.h"
#include <type_traits>

// Where sums go: to a float buffer, or, with what was summed before and the bias, to y.
template <class O> struct Finish {
  float* buffer;  // or nullptr
  O* y;
  int64_t ld;
  const float* before;  // added, or nullptr; as far apart as the target's rows
  const O* bias;        // added, or nullptr

  INLINE vf added(vf v, int64_t t, int64_t m) const {
    if (before) v += load(before + t * ld + m);
    return bias ? v + load(bias + m) : v;
  }
  INLINE void whole(vf v, int64_t t, int64_t m) const {
    v = added(v, t, m);
    if (buffer) store(buffer + t * ld + m, v);
    else store(y + t * ld + m, v);
  }
  INLINE void part(vf v, int64_t t, int64_t m, int n) const {
    if (before) v += load_part(before + t * ld + m, n);
    if (bias) v += load_part(bias + m, n);
    if (buffer) store_part(buffer + t * ld + m, v, n);
    else store_part(y + t * ld + m, v, n);
  }
};

constexpr int ROW_BLOCK = 256, ROW_VECTORS = 4, MOST_ROWS = 32;

// One group of tokens and NV vectors of cols (`left` > 0: one vector of so many).
template <class E, int TB, int NV, bool PART, class O>
static inline void rows_block(const float* a, int64_t lda, const int32_t* koff, const E* w, const int32_t* wk, int64_t K,
                              const Finish<O>& to, int64_t t, int64_t m, int left) {
  constexpr int CHAINS = TB * NV <= 2 ? 4 / (TB * NV) : 1;  // independent sums, where there would be too few
  float total[TB][NV * VL];
  for (int64_t k0 = 0; k0 < K; k0 += ROW_BLOCK) {
    const int n = (int)std::min<int64_t>(ROW_BLOCK, K - k0);
    const int32_t *ko = koff + k0, *wo = wk + k0;
    vf sums[CHAINS][TB][NV];
    for (int h = 0; h < CHAINS; h++)
      for (int i = 0; i < TB; i++)
        for (int v = 0; v < NV; v++) sums[h][i][v] = vf{};
    auto add = [&](int k, int h) __attribute__((always_inline)) {
      const E* row = w + wo[k];
      const float* p = a + ko[k];
      vf weight[NV];
      for (int v = 0; v < NV; v++) weight[v] = PART ? load_part(row, left) : load(row + v * VL);
      for (int i = 0; i < TB; i++) {
        vf s = all(p[i * lda]);
        for (int v = 0; v < NV; v++) sums[h][i][v] += s * weight[v];
      }
    };
    int k = 0;
    for (; k + CHAINS <= n; k += CHAINS) {
      const char* ahead = (const char*)(w + wo[std::min(k + 12, n - 1)]);
      for (int c = 0; c < NV * VL * (int)sizeof(E); c += 256) __builtin_prefetch(ahead + c);
      for (int h = 0; h < CHAINS; h++) add(k + h, h);
    }
    for (; k < n; k++) add(k, 0);
    for (int i = 0; i < TB; i++)
      for (int v = 0; v < NV; v++) {
        vf s = sums[0][i][v];
        if (CHAINS == 2) s += sums[1 % CHAINS][i][v];
        if (CHAINS == 4) s = (s + sums[1 % CHAINS][i][v]) + (sums[2 % CHAINS][i][v] + sums[3 % CHAINS][i][v]);
        if (k0) s += load(total[i] + v * VL);
        if (k0 + n < K) store(total[i] + v * VL, s);
        else if (PART) to.part(s, t + i, m, left);
        else to.whole(s, t + i, m + v * VL);
      }
  }
}

template <class E, int NV, bool PART = false, class O>
APART void rows_of_tokens(int n, const float* a, int64_t lda, const int32_t* koff, const E* w, const int32_t* wk, int64_t K,
                           const Finish<O>& to, int64_t m, int left = 0) {
  int t = 0;
  if (NV <= 4) {
    constexpr int MOST = WIDE || NV < 4 ? 6 : 2;
    if (MOST == 6)
      for (; t + 6 <= n; t += 6) rows_block<E, 6, NV, PART>(a + t * lda, lda, koff, w, wk, K, to, t, m, left);
    if (MOST == 6)
      for (; t + 3 <= n; t += 3) rows_block<E, 3, NV, PART>(a + t * lda, lda, koff, w, wk, K, to, t, m, left);
  }
  for (; t + 2 <= n; t += 2) rows_block<E, 2, NV, PART>(a + t * lda, lda, koff, w, wk, K, to, t, m, left);
  for (; t < n; t++) rows_block<E, 1, NV, PART>(a + t * lda, lda, koff, w, wk, K, to, t, m, left);
}

// W contiguous over the contracted axes: dot products, cols m to m + MB.
template <class E, int TB, int MB, class O>
static inline void rows_dots(const float* a, int64_t lda, const E* w, const int32_t* wm, int64_t K, const Finish<O>& to, int64_t t,
                             int64_t m) {
  vf total[TB][MB];
  for (int i = 0; i < TB; i++)
    for (int j = 0; j < MB; j++) total[i][j] = vf{};
  int64_t k = 0;
  for (; k + VL <= K; k += VL) {
    vf x[TB];
    for (int i = 0; i < TB; i++) x[i] = load(a + i * lda + k);
    for (int j = 0; j < MB; j++) {
      vf weight = load(w + wm[j] + k);
      for (int i = 0; i < TB; i++) total[i][j] += x[i] * weight;
    }
  }
  if (int left = (int)(K - k)) {
    vf x[TB];
    for (int i = 0; i < TB; i++) x[i] = load_part(a + i * lda + k, left);
    for (int j = 0; j < MB; j++) {
      vf weight = load_part(w + wm[j] + k, left);
      for (int i = 0; i < TB; i++) total[i][j] += x[i] * weight;
    }
  }
  for (int i = 0; i < TB; i++)
    for (int j = 0; j < MB; j++) to.part(all(sum(total[i][j])), t + i, m + j, 1);
}

template <class E> static const E* one();
template <> const float* one<float>() { return &ONE; }
template <> const bf16* one<bf16>() { return (const bf16*)ONE_BF16; }

// How one step of a call reads its factor.
template <class E> struct RowWeights {
  const E* at;
  const int32_t* k;  // offsets of its rows
  bool copied, dots;
};

// Entry b, cols [m, m1), of one step.
template <class E, class O>
APART void rows_unit(const Step& s, const RowWeights<E>& W, const float* A, int64_t lda, int n, int64_t b, int64_t m, int64_t m1,
                      float* gathered, Finish<O> to) {
  const float* a = A + s.a_base[b];
  const int32_t* koff = s.a_offsets(b);
  const int64_t K = s.contracted;
  if (W.dots) {
    const E* w = W.at + s.w_base[b] + s.w_k[0];
    if (consecutive(koff, K)) {
      a += koff[0];
    } else {
      for (int t = 0; t < n; t++)
        for (int64_t k = 0; k < K; k++) gathered[t * K + k] = a[t * lda + koff[k]];
      a = gathered, lda = K;
    }
    for (; m + 4 <= m1; m += 4) {
      int t = 0;
      for (; t + 4 <= n; t += 4) rows_dots<E, 4, 4>(a + t * lda, lda, w, s.w_m + m, K, to, t, m);
      for (; t < n; t++) rows_dots<E, 1, 4>(a + t * lda, lda, w, s.w_m + m, K, to, t, m);
    }
    for (; m < m1; m++)
      for (int t = 0; t < n; t++) rows_dots<E, 1, 1>(a + t * lda, lda, w, s.w_m + m, K, to, t, m);
    return;
  }
  const E* w = W.copied ? W.at + (int64_t)s.block[b] * K * s.cols : W.at + s.w_base[b] + s.w_m[0];
  if (n <= 2)
    for (; m + 8 * VL <= m1; m += 8 * VL) rows_of_tokens<E, 8>(n, a, lda, koff, w + m, W.k, K, to, m);
  for (; m + 4 * VL <= m1; m += 4 * VL) rows_of_tokens<E, 4>(n, a, lda, koff, w + m, W.k, K, to, m);
  for (; m + 2 * VL <= m1; m += 2 * VL) rows_of_tokens<E, 2>(n, a, lda, koff, w + m, W.k, K, to, m);
  if (!WIDE)  // with masks a part is as good
    for (; m + VL <= m1; m += VL) rows_of_tokens<E, 1>(n, a, lda, koff, w + m, W.k, K, to, m);
  for (; m + VL <= m1; m += VL) rows_of_tokens<E, 1, true>(n, a, lda, koff, w + m, W.k, K, to, m, VL);
  if (m < m1) rows_of_tokens<E, 1, true>(n, a, lda, koff, w + m, W.k, K, to, m, (int)(m1 - m));
}

// Whether a step's factor is read by dot products; what is left takes a copy, if its cols are not contiguous.
static bool by_dots(const Step& s, int64_t n) {
  if (s.factor < 0 || !consecutive(s.w_k, s.contracted)) return false;
  if (s.cols < VL / 2 && s.contracted >= 2 * VL) return true;
  return !consecutive(s.w_m, s.cols) && n * (s.entries / s.blocks) <= 2;
}

static void lay_out_rows(Program& p) {
  int steps = (int)p.row.size(), last = (int)p.row_sizes.size() - 1;
  p.inverse.resize(steps), p.natural.assign(steps, -1);
  for (int i = 0; i < steps; i++) {
    const Step& s = p.row[i];
    if (s.factor >= 0 && !consecutive(s.w_m, s.cols) && !by_dots(s, 1) && (s.entries / s.blocks) < 8) p.rows_in_place = false;
    if (s.target != last || consecutive(s.c_off, s.cols)) continue;
    p.natural[i] = p.natural_features, p.natural_features += s.entries * s.cols;
    p.inverse[i].assign(p.out, 0);
    for (int64_t b = 0; b < s.entries; b++)
      for (int64_t m = 0; m < s.cols; m++) p.inverse[i][s.c_base[b] + s.c_off[m]] = (int32_t)(b * s.cols + m);
  }
}

// One call by rows: what it needs, and its body for thread `me` of `many`. E: dtype of x and of the factors, O: of y.
template <class E, class O> struct RowsCall {
  static constexpr bool WIDER = sizeof(E) < 4, NARROW = sizeof(O) < 4;  // x is widened first; sums for y are kept in float
  const Program& p;
  const void* const* factors;
  const char* copies;
  const int n, steps = (int)p.row.size(), last = (int)p.row_sizes.size() - 1;
  std::vector<int64_t> at;
  int64_t natural = 0, before = 0, made = 0;
  int64_t shared_bytes = 0;  // of the whole team
  int64_t own_bytes = 0;     // of each thread
  int final_direct = -1, naturals = 0;
  bool fill = false;

  // `picked`: the rows of x lie anywhere.
  RowsCall(const Program& p, const void* const* factors, const char* copies, int n, bool picked)
      : p(p), factors(factors), copies(copies), n(n), at(last + 1) {
    int64_t end = 0;
    for (int b = 1; b < last; b++) at[b] = end, end += lines(p.row_sizes[b] * n * 4);
    natural = end, end += lines(p.natural_features * n * 4);
    before = end, end += NARROW ? lines(p.out * n * 4) : 0;
    made = end, end += copies ? 0 : p.canonical_bytes;
    shared_bytes = lines(end), own_bytes = lines(WIDER || picked ? p.in * n * 4 : 0) + lines(p.max_contracted * n * 4);
    for (int i = 0; i < steps; i++) {
      if (p.row[i].target == last) p.natural[i] < 0 ? (void)(final_direct = i) : (void)naturals++;
      fill |= !copies && copied(i);
    }
  }
  bool copied(int i) const { return p.canonical[i].made && !by_dots(p.row[i], n); }

  template <class R> void run(const R& rows, O* y, const O* bias, char* memory, char* mine_only, int me, int many) const {
    constexpr bool PICKED = !std::is_same<R, Apart<E>>::value;
    const float* X;
    int64_t ldx;
    float* gathered = (float*)(mine_only + lines(WIDER || PICKED ? p.in * n * 4 : 0));
    if constexpr (WIDER || PICKED) {
      float* wide = (float*)mine_only;
      for (int t = 0; t < n; t++) widen_all(rows.row(t), wide + t * p.in, 0, p.in);
      X = wide, ldx = p.in;
    } else {
      X = rows.x, ldx = rows.ld;
    }
    if (fill) {
      fill_copies(p, CANONICAL, factors, memory + made, me, many, [&](int i, bool) { return copied(i); });
      barrier(many);
    }
    bool begun = false;  // whether a direct step has written to y
    float* const sums = NARROW ? (float*)(memory + before) : (float*)(void*)y;
    for (int i = 0; i < steps; i++) {
      const Step& s = p.row[i];
      if (p.row_waits[i]) barrier(many);
      const bool whole = copied(i);
      const char* from = copies ? copies : memory + made;
      RowWeights<E> W{whole ? (const E*)(from + p.canonical[i].at) : s.factor < 0 ? one<E>() : (const E*)factors[s.factor],
                      whole ? p.canonical_k[i].data() : s.w_k, whole, by_dots(s, n)};
      const float* A = s.source ? (const float*)(memory + at[s.source]) : X;
      const int64_t lda = s.source ? p.row_sizes[s.source] : ldx;
      Finish<O> to{};
      to.ld = p.row_sizes[s.target];
      bool in_order = false;
      if (s.target != last) {
        to.buffer = (float*)(memory + at[s.target]);
      } else if (p.natural[i] >= 0) {
        to.buffer = (float*)(memory + natural) + p.natural[i] * n, to.ld = s.entries * s.cols, in_order = true;
      } else {
        if (begun) to.before = sums;
        bool ends = i == final_direct && !naturals;
        if (ends) to.y = y, to.bias = bias;
        else to.buffer = sums;
        begun = true;
      }
      const int64_t each = ROW_VECTORS * VL, blocks = parts(s.cols, each);
      Share mine = share(s.entries * blocks, me, many);
      for (int64_t u = mine.begin; u < mine.end;) {
        int64_t b = u / blocks, first = u % blocks, upto = std::min(blocks, first + mine.end - u);
        Finish<O> here = to;
        int64_t shift = in_order ? b * s.cols : s.c_base[b] + s.c_off[0];
        if (here.buffer) here.buffer += shift;
        if (here.y) here.y += shift;
        if (here.before) here.before += shift;
        if (here.bias) here.bias += shift;
        rows_unit(s, W, A, lda, n, b, first * each, std::min(s.cols, upto * each), gathered, here);
        u += upto - first;
      }
    }
    if (!naturals) return;
    barrier(many);
    Share mine = share(parts(p.out, 32), me, many);  // whole lines
    const int64_t f0 = mine.begin * 32, f1 = std::min(p.out, mine.end * 32);
    for (int t = 0; t < n; t++) {
      alignas(64) float run[RUN];
      for (int64_t g0 = f0; g0 < f1; g0 += RUN) {
        const int g = (int)std::min<int64_t>(RUN, f1 - g0);
        bool first = true;
        if (final_direct >= 0) memcpy(run, sums + t * p.out + g0, g * 4), first = false;
        for (int i = 0; i < steps; i++) {
          if (p.natural[i] < 0) continue;
          const int32_t* inverse = p.inverse[i].data() + g0;
          const float* q = (const float*)(memory + natural) + p.natural[i] * n + t * p.row[i].entries * p.row[i].cols;
          if (first)
            for (int f = 0; f < g; f++) run[f] = q[inverse[f]];
          else
            for (int f = 0; f < g; f++) run[f] += q[inverse[f]];
          first = false;
        }
        O* to = y + t * p.out + g0;
        const O* add = bias ? bias + g0 : nullptr;
        int f = 0;
        for (; f + VL <= g; f += VL) store(to + f, add ? load(run + f) + load(add + f) : load(run + f));
        if (f < g) store_part(to + f, add ? load_part(run + f, g - f) + load_part(add + f, g - f) : load_part(run + f, g - f), g - f);
      }
    }
  }
};

template <class E>
static int forward_rows(const Program& p, const void* const* factors, const char* copies, const E* x, int64_t ld, int64_t n,
                        const E* bias, E* y, int threads) {
  const RowsCall<E, E> call(p, factors, copies, (int)n, false);
  char* memory = scratch().take(call.shared_bytes + threads * call.own_bytes);
  if (!memory) return NO_MEMORY;
  parallel(threads, [&](int me, int many) {
    call.run(Apart<E>{x, ld}, y, bias, memory, memory + call.shared_bytes + me * call.own_bytes, me, many);
  });
  scratch().trim();
  return FINE;
}
