// Tokens sorted by the experts that they chose. Each choice (token, expert) is a row of its own, from where x is read by
// its token's number until the results of a token's choices are added up with their weights:
//
//     chosen by tokens       sorted, by number        tiles of one expert each, or rows       summed by tokens
//     t0: e2 e0              e0 | t0 t3 t4            x's rows -> e0's factors -> z           y0 = w z + w' z' + bias
//     t1: e1 e2              e1 | t1 t3               x's rows -> e1's factors -> z           y1 = ...
//     t2: e2 e1 ...          e2 | t0 t1 t2 ...        ...
//
// No two threads write one row, and no sum depends on how many there are. Nothing of x is copied: a tile's rows are read by
// number, z stays in the L3 (batches of tokens see to that), and the weights come with the last sum.
#pragma once
#include "program.h"
#include "scratch.h"

// What crosses the border: the choices, and how an expert's factors are found.
struct Routed {
  const int64_t* chosen;  // (tokens, active); a number out of range: dropped
  const float* weights;   // (tokens, active)
  const int32_t* own;     // of each factor: 1 if every expert has its own, one after another; 0 if they share it
  int64_t experts, active;
};

// Tokens [first, first + tokens), and their choices in the order of experts.
struct Sorted {
  int64_t first, tokens;
  std::vector<int64_t> start;   // of each expert's choices, and the end
  std::vector<int32_t> token;   // of each choice, from the first token of the call
  std::vector<float> weight;    // of each choice
  std::vector<int32_t> choice;  // its place in Routed's lists
  std::vector<int32_t> place;   // of each of the tokens' choices in this order, -1 for those that were dropped

  int64_t count(int64_t e) const { return start[e + 1] - start[e]; }
};

static Sorted sorted(const Routed& r, int64_t first, int64_t tokens) {
  Sorted s{first, tokens, std::vector<int64_t>(r.experts + 1, 0), {}, {}, {}, std::vector<int32_t>(tokens * r.active, -1)};
  const int64_t* chosen = r.chosen + first * r.active;
  auto there = [&](int64_t c) { return chosen[c] >= 0 && chosen[c] < r.experts; };
  for (int64_t c = 0; c < tokens * r.active; c++)
    if (there(c)) s.start[chosen[c] + 1]++;
  for (int64_t e = 0; e < r.experts; e++) s.start[e + 1] += s.start[e];
  const int64_t all = s.start[r.experts];
  s.token.resize(all), s.weight.resize(all), s.choice.resize(all);
  std::vector<int64_t> next(s.start.begin(), s.start.end() - 1);
  for (int64_t c = 0; c < tokens * r.active; c++) {
    if (!there(c)) continue;
    const int64_t to = next[chosen[c]]++;
    s.place[c] = (int32_t)to, s.token[to] = (int32_t)(first + c / r.active);
    s.choice[to] = (int32_t)(first * r.active + c), s.weight[to] = r.weights[first * r.active + c];
  }
  return s;
}

// Batches whose choices' rows of `features` numbers stay in the L3, if each expert has enough tokens then.
static std::vector<Sorted> batches(const Routed& r, int64_t n, int64_t features) {
  const int64_t fit = std::max<int64_t>(caches.l3 / 2, 4 << 20) / (r.active * features * 4);
  const int64_t each = std::max(fit, 256 * r.experts / r.active), count = (n + each - 1) / each;
  std::vector<Sorted> all;
  for (int64_t b = 0; b < count; b++) all.push_back(sorted(r, n * b / count, n * (b + 1) / count - n * b / count));
  return all;
}

// Each expert's factors, expert by expert.
template <class P> static std::vector<P> factors_of(const Program& p, const Routed& r, const P* factors) {
  const int64_t itemsize = p.dtype == BFLOAT16 ? 2 : 4;
  std::vector<P> all;
  for (int64_t e = 0; e < r.experts; e++)
    for (size_t f = 0; f < p.numbers.size(); f++)
      all.push_back(factors && factors[f] ? (P)((const char*)factors[f] + (r.own[f] ? e * p.numbers[f] * itemsize : 0)) : nullptr);
  return all;
}
