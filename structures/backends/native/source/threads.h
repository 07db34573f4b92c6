// Threads of whatever OpenMP runtime the process has already, by five of its entry points: no pragma, so any compiler
// will do, and there is never a second runtime.
#pragma once
#include <atomic>
#include <cstdint>

struct Runtime {
  void (*parallel)(void (*)(void*), void*, unsigned, unsigned);
  void (*barrier)();
  int (*thread)();
  int (*team)();
  int (*in_parallel)();
};
static Runtime runtime;

// body(me, many) on each of up to `threads` threads. One thread never enters the runtime: that is safe after a fork.
template <class F> static inline void parallel(int64_t threads, F&& body) {
  if (threads <= 1 || !runtime.parallel || runtime.in_parallel()) {
    body(0, 1);
    return;
  }
  runtime.parallel([](void* p) { (*(F*)p)(runtime.thread(), runtime.team()); }, (void*)&body, (unsigned)threads, 0);
}
static inline void barrier(int many) {
  if (many > 1) runtime.barrier();
}
// The contiguous share of `units` of thread `me`.
struct Share { int64_t begin, end; };
static inline Share share(int64_t units, int me, int many) { return {units * me / many, units * (me + 1) / many}; }
