#include "routing.h"

#include <algorithm>
#include <vector>

#include "common.h"
#include "isa.h"

namespace deepwell {

namespace {

// The k largest of `values` among those allowed, best first; ties go to the lower index, NaN never wins over a number.
void pick(const std::vector<float>& values, std::vector<char> allowed, int k, int32_t* out) {
  for (int i = 0; i < k; ++i) {
    int best = -1;
    for (int e = 0; e < static_cast<int>(values.size()); ++e)
      if (allowed[e] && (best < 0 || values[e] > values[best] || values[best] != values[best])) best = e;
    out[i] = best;
    allowed[best] = 0;
  }
}

float group_score(const float* choice, int size, Method method) {
  float first = choice[0], second = 0;
  for (int i = 1; i < size; ++i) {
    if (i == 1) second = choice[1];
    if (choice[i] > first) {
      second = first;
      first = choice[i];
    } else if (choice[i] > second) {
      second = choice[i];
    }
  }
  return method == Method::kNoauxTc ? first + second : first;
}

std::vector<char> allowed_experts(const Routing& r, const std::vector<float>& choice) {
  if (r.method == Method::kGreedy || r.topk_group == r.n_group) return std::vector<char>(r.experts, 1);
  const int size = r.experts / r.n_group;
  std::vector<float> scores(r.n_group);
  for (int g = 0; g < r.n_group; ++g) scores[g] = group_score(choice.data() + g * size, size, r.method);
  std::vector<int32_t> groups(r.topk_group);
  pick(scores, std::vector<char>(r.n_group, 1), r.topk_group, groups.data());
  std::vector<char> allowed(r.experts, 0);
  for (int g : groups) std::fill_n(allowed.begin() + g * size, size, char{1});
  return allowed;
}

}  // namespace

Method parse_method(const std::string& name) {
  if (name == "greedy") return Method::kGreedy;
  if (name == "group_limited_greedy") return Method::kGroupLimitedGreedy;
  if (name == "noaux_tc") return Method::kNoauxTc;
  fail("routing method '" + name + "' is unknown; allowed: greedy, group_limited_greedy, noaux_tc");
}

void check(const Routing& r) {
  require(r.experts >= 1 && r.top_k >= 1 && r.top_k <= r.experts,
          "routing needs 1 <= top_k <= experts, not top_k " + std::to_string(r.top_k) + " of " +
              std::to_string(r.experts));
  if (r.method == Method::kGreedy) return;
  require(r.n_group >= 1 && r.experts % r.n_group == 0, "routing cannot cut " + std::to_string(r.experts) +
          " experts into " + std::to_string(r.n_group) + " equal groups");
  require(r.topk_group >= 1 && r.topk_group <= r.n_group, "routing needs 1 <= topk_group <= n_group");
  require(r.top_k <= r.experts / r.n_group * r.topk_group, "routing cannot choose " + std::to_string(r.top_k) +
          " experts from the " + std::to_string(r.experts / r.n_group * r.topk_group) + " of the best groups");
}

void route(const Routing& r, float* scores, const float* bias, int32_t* chosen, float* weights) {
  (r.softmax ? kernels().softmax : kernels().sigmoid)(scores, scores, r.experts);
  std::vector<float> choice(scores, scores + r.experts);
  if (bias)
    for (int e = 0; e < r.experts; ++e) choice[e] += bias[e];
  pick(choice, allowed_experts(r, choice), r.top_k, chosen);
  float total = 0;
  for (int i = 0; i < r.top_k; ++i) total += scores[chosen[i]];
  for (int i = 0; i < r.top_k; ++i) {
    const float s = scores[chosen[i]];
    weights[i] = (r.normalize ? s / (total + 1e-20f) : s) * r.scale;
  }
}

}  // namespace deepwell
