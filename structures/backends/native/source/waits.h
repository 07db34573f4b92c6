// Between which steps all threads have to wait: where a step reads what another thread wrote, or adds to it. Two steps
// that share out the same places in the same way follow each other without a barrier.
#pragma once
#include "program.h"

static bool same_places(const Step& a, const Step& b) {
  if (a.entries != b.entries || a.cols != b.cols || a.c_stride || b.c_stride) return false;
  return !memcmp(a.c_base, b.c_base, a.entries * 4) && !memcmp(a.c_off, b.c_off, a.cols * 4);
}

// `natural`: steps that write to a buffer of their own (>= 0) wait for nobody's target.
static std::vector<char> waits(const std::vector<Step>& steps, const std::vector<int64_t>& natural) {
  std::vector<char> result(steps.size(), 0);
  int since = 0;  // the first step after the last barrier
  for (int i = 0; i < (int)steps.size(); i++) {
    const Step& s = steps[i];
    for (int j = since; j < i && !result[i]; j++) {
      const Step& t = steps[j];
      bool own = !natural.empty() && (natural[i] >= 0 || natural[j] >= 0);
      if (t.target == s.source || (t.target == s.target && !own && !same_places(s, t))) result[i] = 1;
    }
    if (result[i]) since = i;
  }
  return result;
}
