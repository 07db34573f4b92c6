// Memory between two steps. It belongs to the thread that calls, so that calls of several threads do not meet; it grows
// and is kept up to KEPT bytes. A call takes one block and hands out pieces of it to the threads it starts.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#if defined(__linux__)
#include <sys/mman.h>
#endif

constexpr size_t KEPT = 64 << 20;
static std::atomic<int64_t> held{0};

class Scratch {
  char* at_ = nullptr;
  size_t bytes_ = 0;

 public:
  ~Scratch() { release(); }
  void release() {
    free(at_);
    held -= (int64_t)bytes_;
    at_ = nullptr, bytes_ = 0;
  }
  // `bytes` of memory aligned to a page (a huge one where large), nullptr if there is none.
  char* take(size_t bytes) {
    if (bytes_ >= bytes && at_) return at_;
    release();
    size_t page = bytes >= (2 << 20) ? 2 << 20 : 4096, rounded = (bytes / page + 1) * page;
    at_ = (char*)aligned_alloc(page, rounded);
    if (!at_) return nullptr;
#if defined(__linux__)
    if (page > 4096) madvise(at_, rounded, MADV_HUGEPAGE);  // tiles are walked with strides of many pages
#endif
    bytes_ = rounded, held += (int64_t)rounded;
    return at_;
  }
  void trim() {
    if (bytes_ > KEPT) release();
  }
};
static Scratch& scratch() {
  static thread_local Scratch mine;
  return mine;
}
// A whole number of cache lines, and one more, so that blocks of a power of two do not fall on the same places.
static inline int64_t lines(int64_t bytes) { return (bytes + 63) / 64 * 64 + 64; }
