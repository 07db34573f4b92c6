// The native library: structured products over offset tables, for every structure alike. One translation unit with a
// plain C interface; `library.py` holds the same records and signatures.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "backward.h"
#include "experts.h"
#include "experts_backward.h"
#include "forward.h"
#include "measure.h"
#include "rows.h"
#include "waits.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT int32_t structures_version() { return VERSION; }
EXPORT int32_t structures_record_size(int32_t which) {
  return which == 0   ? (int32_t)sizeof(Step)
         : which == 1 ? (int32_t)sizeof(Description)
         : which == 2 ? (int32_t)sizeof(Plan)
         : which == 3 ? (int32_t)sizeof(Runtime)
                      : (int32_t)sizeof(Routed);
}
EXPORT int32_t structures_vector() { return VL; }
EXPORT int32_t structures_pairs() { return PAIRED; }
EXPORT void structures_set_runtime(const Runtime* r) { runtime = *r; }
EXPORT void structures_set_caches(int64_t l1, int64_t l2, int64_t l3) { caches = {l1, l2, l3}; }
EXPORT void structures_release() { scratch().release(); }
EXPORT int64_t structures_scratch_bytes() { return held; }

EXPORT Program* structures_open(const Description* d) {
  Program* p = opened(*d);
  if (!p) return nullptr;
  lay_out(*p);
  lay_out_rows(*p);
  p->tile_waits = waits(p->tile, {});
  p->row_waits = waits(p->row, p->natural);
  return p;
}
EXPORT void structures_close(Program* p) { delete p; }
EXPORT void structures_plan(const Program* p, int64_t n, int32_t threads, int32_t keeps, int32_t back, Plan* plan) {
  *plan = planned(*p, n, threads, keeps);
  if (!back) return;
  const Chunks cut = chunks(*p, n, plan->threads = std::max(threads, 1), 0);
  plan->path = TILES, plan->tile = (int32_t)cut.tile, plan->split = cut.split, plan->chunk = (int32_t)cut.tokens;
}
EXPORT int64_t structures_copies_bytes(const Program* p, int32_t kind) { return copies_bytes(*p, kind); }
EXPORT int32_t structures_make_copies(const Program* p, int32_t kind, const void* const* factors, char* to, int32_t threads) {
  parallel(threads, [&](int me, int many) { fill_copies(*p, (Kind)kind, factors, to, me, many, [](int, bool) { return true; }); });
  return FINE;
}

static Plan asked(const Program& p, int64_t n, int threads, bool copies, int64_t how) {
  if (!how) return planned(p, n, threads, copies ? CANONICAL | PAIRS : 0);
  Plan plan = {};
  plan.path = (int32_t)(how & 0xff), plan.tile = (int32_t)(how >> 8 & 0xfff), plan.split = (int32_t)(how >> 20 & 1);
  plan.threads = std::max(threads, 1);
  return plan;
}
template <class E>
static int32_t forward(const Program& p, const void* const* factors, const char* copies, const void* x, int64_t ld, int64_t n,
                       const void* bias, void* y, int32_t threads, int64_t how) {
  if (n <= 0) return FINE;
  Plan plan = asked(p, n, threads, copies != nullptr, how);
  if (plan.path == ROWS) {
    if (n > MOST_ROWS) return NOT_POSSIBLE;
    return forward_rows(p, factors, copies, (const E*)x, ld, n, (const E*)bias, (E*)y, plan.threads);
  }
  if (plan.tile < 16 || plan.tile % 16) return NOT_POSSIBLE;
  return forward_tiles(p, factors, copies, (const E*)x, ld, n, (const E*)bias, (E*)y, plan);
}
EXPORT int32_t structures_forward(const Program* p, const void* const* factors, const char* copies, const void* x, int64_t ld,
                                  int64_t n, const void* bias, void* y, int32_t threads, int64_t how) {
  auto run = p->dtype == FLOAT32 ? forward<float> : forward<bf16>;
  return run(*p, factors, copies, x, ld, n, bias, y, threads, how);
}
EXPORT int32_t structures_backward(const Program* p, const void* const* factors, const char* copies, const void* x, int64_t ldx,
                                   const void* dy, int64_t ldy, int64_t n, void* dx, void* const* dfactors, void* dbias,
                                   int32_t threads, int64_t how) {
  if (how && ((how >> 8 & 0xfff) < 16 || (how >> 8 & 0xf))) return NOT_POSSIBLE;
  threads = std::max(threads, 1);
  if (n <= 0) {  // empty sums
    const size_t itemsize = p->dtype == FLOAT32 ? 4 : 2;
    for (size_t f = 0; dfactors && f < p->numbers.size(); f++)
      if (dfactors[f]) memset(dfactors[f], 0, p->numbers[f] * itemsize);
    if (dbias) memset(dbias, 0, p->out * itemsize);
    return FINE;
  }
  if (p->dtype == FLOAT32)
    return backward(*p, factors, copies, (const float*)x, ldx, (const float*)dy, ldy, n, (float*)dx, (float* const*)dfactors,
                    (float*)dbias, threads, how);
  return backward(*p, factors, copies, (const bf16*)x, ldx, (const bf16*)dy, ldy, n, (bf16*)dx, (bf16* const*)dfactors,
                  (bf16*)dbias, threads, how);
}

EXPORT int32_t structures_forward_experts(const Program* p, const Routed* routed, const void* const* factors, const char* copies,
                                          const void* x, int64_t ld, int64_t n, const void* bias, void* y, int32_t threads) {
  threads = std::max(threads, 1);
  if (p->dtype == FLOAT32)
    return forward_experts(*p, *routed, factors, copies, (const float*)x, ld, n, (const float*)bias, (float*)y, threads);
  return forward_experts(*p, *routed, factors, copies, (const bf16*)x, ld, n, (const bf16*)bias, (bf16*)y, threads);
}
EXPORT int32_t structures_backward_experts(const Program* p, const Routed* routed, const void* const* factors, const void* x,
                                           int64_t ldx, const void* dy, int64_t ldy, int64_t n, void* dx, void* const* dfactors,
                                           float* dweights, int32_t threads) {
  threads = std::max(threads, 1);
  if (p->dtype == FLOAT32)
    return backward_experts(*p, *routed, factors, (const float*)x, ldx, (const float*)dy, ldy, n, (float*)dx,
                            (float* const*)dfactors, dweights, threads);
  return backward_experts(*p, *routed, factors, (const bf16*)x, ldx, (const bf16*)dy, ldy, n, (bf16*)dx, (bf16* const*)dfactors,
                          dweights, threads);
}

EXPORT double structures_measure_products(double seconds, int32_t dtype) { return measure_products(seconds, (Dtype)dtype); }
EXPORT double structures_measure_transposes(double seconds) { return measure_transposes(seconds); }
EXPORT double structures_measure_reads(double seconds, int64_t bytes) { return measure_reads(seconds, bytes); }
