// Three figures of a machine, one thread each: what the product of a tile reaches, the pass from rows to a tile and back,
// and reading weights by rows.
#pragma once
#include <time.h>
#include "copies.h"
#include "rows.h"
#include "scratch.h"
#include "transpose.h"

// The best of short runs, in the thread's own time: what else the processor does meanwhile is not counted.
template <class F> static double rate(double seconds, double amount, F&& body) {
  auto now = [] {
    timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
  };
  const double end = now() + seconds;
  double best = 1e30;
  do {
    double t = now();
    body();
    best = std::min(best, now() - t);
  } while (now() < end);
  return amount / best;
}

// FLOP/s of one step of 192 x 64 on 64 tokens.
static double measure_products(double seconds, Dtype dtype) {
  constexpr int64_t M = 192, K = 64, T = 64;
  std::vector<int32_t> cols(M), rows(K), zero(1, 0);
  for (int i = 0; i < M; i++) cols[i] = i;
  for (int i = 0; i < K; i++) rows[i] = (int32_t)(i * M);
  std::vector<int32_t> koff(cols.begin(), cols.begin() + K);
  Step s = {1, M, K, 1, 0, 0, zero.data(), koff.data(), zero.data(), cols.data(), zero.data(), rows.data(), cols.data(), zero.data(), 0, 0, 1, 0};
  char* memory = scratch().take(lines(M * K * 4) + lines(K * T * 4) + lines(M * T * 4) + lines(K * T * 4));
  if (!memory) return 0;
  memset(memory, 0, lines(M * K * 4) + lines(K * T * 4) + lines(M * T * 4));
  float* A = (float*)(memory + lines(M * K * 4));
  float* C = (float*)((char*)A + lines(K * T * 4));
  uint32_t* pairs = (uint32_t*)((char*)C + lines(M * T * 4));
  Weights w{memory, dtype == BFLOAT16 ? memory : nullptr};
  return rate(seconds, 2e1 * M * K * T, [&] {
    for (int i = 0; i < 10; i++) run(dtype, s, w, A, C, T, T, pairs, 0, units(s));
  });
}

// Bytes/s, read and written counted once each, of x to a tile and a tile to y: 1024 features, 64 tokens.
static double measure_transposes(double seconds) {
  constexpr int64_t F = 1024, T = 64;
  float* x = (float*)scratch().take(2 * lines(F * T * 4));
  if (!x) return 0;
  memset(x, 0, 2 * lines(F * T * 4));
  float* tile = (float*)((char*)x + lines(F * T * 4));
  return rate(seconds, 2. * F * T * 4, [&] {
    tile_in(Apart<float>{x, F}, T, tile, T, 0, F);
    tile_out(tile, T, (const float*)nullptr, T, x, F, 0, F, false);
  });
}

// Bytes/s of weights of so many bytes, read for one token.
static double measure_reads(double seconds, int64_t bytes) {
  constexpr int64_t M = 4 * VL * 4;
  const int64_t K = std::max<int64_t>(1, bytes / 4 / M);
  float* w = (float*)scratch().take(lines(M * K * 4) + lines(K * 4) + lines(M * 4));
  if (!w) return 0;
  memset(w, 0, M * K * 4);
  float* a = (float*)((char*)w + lines(M * K * 4));
  float* c = (float*)((char*)a + lines(K * 4));
  memset(a, 0, K * 4);
  std::vector<int32_t> rows(K), koff(K);
  for (int64_t k = 0; k < K; k++) rows[k] = (int32_t)(k * M), koff[k] = (int32_t)k;
  Finish<float> to{c, nullptr, M, nullptr, nullptr};
  return rate(seconds, 4. * M * K, [&] {
    for (int64_t m = 0; m < M; m += 8 * VL) {
      Finish<float> here = to;
      rows_of_tokens<float, 8>(1, a, K, koff.data(), w + m, rows.data(), K, here, m);
    }
  });
}
