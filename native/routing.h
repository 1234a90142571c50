// How a router picks experts; ops/base.py states the rules.
#pragma once
#include <cstdint>
#include <string>

namespace deepwell {

enum class Method { kGreedy, kGroupLimitedGreedy, kNoauxTc };

struct Routing {
  int experts, top_k;
  bool softmax;
  Method method;
  int n_group, topk_group;
  bool normalize;
  float scale;
};

Method parse_method(const std::string& name);
void check(const Routing& routing);

// Chooses for one token. `scores` holds the logits and becomes the scores; bias may be null. Writes top_k experts, best
// first, and their weights.
void route(const Routing& routing, float* scores, const float* bias, int32_t* chosen, float* weights);

}  // namespace deepwell
