// Choosing tokens by rows of logits. ops/sampling.py states the contract; all arithmetic on a row is float64 in an order
// that neither the threads nor the instruction set change.
#pragma once
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "common.h"

namespace deepwell {

// Neutral values switch a rule off. The order is: bias, repetition, presence and frequency, temperature, top_k, top_p,
// min_p, draw.
struct SamplingRules {
  double temperature = 1, top_p = 1;
  int64_t top_k = 0;
  double min_p = 0, presence = 0, frequency = 0, repetition = 1;
};

// A token whose logit the rules of a request change.
struct Touched {
  int32_t token;
  bool seen;        // in the prompt or the answer; kept for the repetition penalty alone
  int64_t count;    // in the answer; kept for the presence and frequency penalties alone
  double bias;
};

// The state of one request.
class Sampler {
 public:
  // Raises for rules out of their range and tokens outside the vocabulary.
  Sampler(const SamplingRules& rules, int vocab, const std::vector<std::pair<int64_t, double>>& bias,
          const std::vector<int64_t>& prompt);

  const SamplingRules& rules() const { return rules_; }
  int vocab() const { return vocab_; }
  const std::vector<Touched>& touched() const { return touched_; }  // by ascending token
  // What the rules make of the logit of a touched token.
  double adjusted(double logit, const Touched& t) const;
  void add(int token);  // to the answer

 private:
  Touched& touch(int token);

  const SamplingRules rules_;
  const int vocab_;
  std::vector<Touched> touched_;
};

// What is wanted of `rows` consecutive rows of logits; ops/sampling.py explains the fields.
struct Ask {
  Sampler* sampler;
  int rows;
  std::vector<int64_t> score;
  bool choose;
  std::vector<int64_t> draft;
  std::vector<double> points;
  std::optional<int64_t> logprobs, score_logprobs;
  const uint32_t* masks;  // a row of ceil(V / 32) for each row that may choose, or null

  int known() const { return rows - static_cast<int>(draft.size()); }
};

struct RowLogprob {
  int64_t token;
  double logprob;
  std::vector<std::pair<int64_t, double>> top;  // from the likeliest down
};

struct Chosen {
  std::vector<int64_t> tokens;
  std::vector<RowLogprob> logprobs, scores;
  bool sound = true;
};

// Raises unless every ask is well-formed and together they have `rows` rows of `vocab` logits.
void check(const std::vector<Ask>& asks, int rows, int vocab);

// One answer for each ask, which must have been checked; `logits` are their rows, packed. Calls take turns.
std::vector<Chosen> choose(const float* logits, int vocab, const std::vector<Ask>& asks);

// ln x for x >= 1, within two units in the last place: the same on every machine, unlike the C library's.
double natural_log(double x);

}  // namespace deepwell
