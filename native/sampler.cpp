// The state of a request, and what is refused before anything is computed.
#include <algorithm>
#include <cfloat>
#include <cstdio>
#include <iterator>

#include "sampling.h"

namespace deepwell {

namespace {

constexpr double kMost = 1e100;  // of a bias or penalty: then no logit overflows

std::string number(int64_t n) { return std::to_string(n); }

std::string shown(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%g", value);
  return text;
}

void in_range(double value, double low, double high, const char* what) {
  require(value >= low && value <= high,
          std::string(what) + " is " + shown(value) + "; it must be from " + shown(low) + " to " + shown(high));
}

void known_token(int64_t token, int vocab, const std::string& what) {
  require(token >= 0 && token < vocab, what + " " + number(token) + " is outside 0.." + number(vocab - 1));
}

void check_mask(const uint32_t* mask, int vocab, const std::string& what) {
  uint32_t any = 0;
  for (int i = 0; i < vocab / 32; ++i) any |= mask[i];
  if (vocab % 32) any |= mask[vocab / 32] & ((1u << vocab % 32) - 1);
  require(any != 0, what + " allows no token");
}

void check_one(const Ask& a, int vocab, const std::string& what) {
  require(a.sampler->vocab() == vocab, "the sampler of " + what + " is for " + number(a.sampler->vocab()) +
          " tokens, the rows have " + number(vocab) + " logits");
  require(a.choose || a.draft.empty(), what + " has a draft, but chooses nothing");
  require(a.choose || a.masks == nullptr, what + " has masks, but chooses nothing");
  const int64_t choosing = a.choose ? 1 + static_cast<int64_t>(a.draft.size()) : 0;
  const int64_t least = std::max<int64_t>(1, std::max<int64_t>(a.score.size() + a.draft.size(), choosing));
  require(a.rows >= least, what + " has " + number(a.rows) + " rows, and needs " + number(least));
  for (int64_t token : a.score) known_token(token, vocab, "scored token of " + what);
  for (int64_t token : a.draft) known_token(token, vocab, "drafted token of " + what);
  const bool drawn = a.choose && a.sampler->rules().temperature != 0;
  const int64_t points = static_cast<int64_t>(a.points.size());
  require(drawn ? points == choosing : points == 0 || points == choosing,
          what + " has " + number(points) + " points for " + number(choosing) + " rows that may choose");
  for (double point : a.points)
    require(point >= 0 && point < 1, "a point of " + what + " is " + shown(point) + ", not within [0, 1)");
  for (const auto& count : {a.logprobs, a.score_logprobs})
    require(!count || *count >= 0, what + " wants " + number(count.value_or(0)) + " of the likeliest tokens");
  for (int64_t i = 0; a.masks && i < choosing; ++i)
    check_mask(a.masks + i * ceil_div(vocab, 32), vocab, "mask " + number(i) + " of " + what);
}

}  // namespace

Sampler::Sampler(const SamplingRules& rules, int vocab, const std::vector<std::pair<int64_t, double>>& bias,
                 const std::vector<int64_t>& prompt)
    : rules_(rules), vocab_(vocab) {
  require(vocab >= 1 && vocab < (1 << 30), "a vocabulary of " + number(vocab) + " tokens");
  in_range(rules.temperature, 0, DBL_MAX, "temperature");
  in_range(rules.top_p, 0, 1, "top_p");
  in_range(rules.min_p, 0, 1, "min_p");
  require(rules.top_k >= 0, "top_k is " + number(rules.top_k) + "; it must be at least 0");
  in_range(rules.presence, -kMost, kMost, "presence_penalty");
  in_range(rules.frequency, -kMost, kMost, "frequency_penalty");
  in_range(rules.repetition, 1 / kMost, kMost, "repetition_penalty");
  for (const auto& [token, value] : bias) {
    known_token(token, vocab, "biased token");
    in_range(value, -kMost, kMost, "logit_bias");
    touched_.push_back({static_cast<int32_t>(token), false, 0, value});
  }
  const auto ascending = [](const Touched& a, const Touched& b) { return a.token < b.token; };
  std::sort(touched_.begin(), touched_.end(), ascending);
  std::vector<int64_t> seen = prompt;
  std::sort(seen.begin(), seen.end());
  seen.erase(std::unique(seen.begin(), seen.end()), seen.end());
  for (int64_t token : seen) known_token(token, vocab, "prompt token");
  if (rules.repetition == 1) return;
  std::vector<Touched> both, more;
  for (int64_t token : seen) more.push_back({static_cast<int32_t>(token), true, 0, 0});
  std::set_union(touched_.begin(), touched_.end(), more.begin(), more.end(), std::back_inserter(both), ascending);
  touched_ = std::move(both);
  for (Touched& t : touched_) t.seen = std::binary_search(seen.begin(), seen.end(), t.token);
}

double Sampler::adjusted(double logit, const Touched& t) const {
  logit += t.bias;
  if (t.seen) logit = logit > 0 ? logit / rules_.repetition : logit * rules_.repetition;
  if (t.count) logit -= rules_.frequency * static_cast<double>(t.count) + rules_.presence;
  return logit;
}

Touched& Sampler::touch(int token) {
  const auto at = std::lower_bound(touched_.begin(), touched_.end(), token,
                                   [](const Touched& t, int id) { return t.token < id; });
  if (at != touched_.end() && at->token == token) return *at;
  return *touched_.insert(at, {token, false, 0, 0});
}

void Sampler::add(int token) {
  if (rules_.repetition != 1) touch(token).seen = true;
  if (rules_.presence != 0 || rules_.frequency != 0) ++touch(token).count;
}

void check(const std::vector<Ask>& asks, int rows, int vocab) {
  int64_t all = 0;
  std::vector<const Sampler*> choosing;
  for (size_t i = 0; i < asks.size(); ++i) {
    check_one(asks[i], vocab, "ask " + number(i));
    all += asks[i].rows;
    if (asks[i].choose) choosing.push_back(asks[i].sampler);
  }
  require(all == rows, "the asks have " + number(all) + " rows together, the logits " + number(rows));
  std::sort(choosing.begin(), choosing.end());
  require(std::adjacent_find(choosing.begin(), choosing.end()) == choosing.end(),
          "two asks that choose have the same sampler");
}

}  // namespace deepwell
