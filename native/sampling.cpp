#include "sampling.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <mutex>
#include <numeric>

#include "isa.h"
#include "pool.h"

namespace deepwell {

namespace {

constexpr double kNone = -std::numeric_limits<double>::infinity();
constexpr double kBracket = 1.01;       // how far apart the weights may be among which a nucleus ends, before sorting
constexpr size_t kInlineWork = 65536;   // logits below which waking threads costs more than it gives

struct Candidate {
  int token;
  double value;
};

// The double in the middle of two that are not negative, in the whole numbers that doubles are ordered like.
double between(double low, double high) {
  uint64_t a, b;
  std::memcpy(&a, &low, 8);
  std::memcpy(&b, &high, 8);
  a += (b - a) / 2;
  std::memcpy(&low, &a, 8);
  return low;
}

// One row of logits as a request sees it: masked, biased and penalised, chunk by chunk.
class Row {
 public:
  // `peaks` are those of the logits' chunks. Without a sampler the row is the model's own.
  Row(const float* logits, int vocab, const float* peaks, const uint32_t* allowed = nullptr,
      const Sampler* sampler = nullptr);

  int vocab() const { return vocab_; }
  int chunks() const { return static_cast<int>(peaks_.size()); }
  double peak() const { return peak_; }
  void read(int chunk, double* out) const;
  int best() const;
  // e^-((peak - value) / temperature) of each value, unless `weights` is null; returns the sums of the chunks.
  std::vector<double> weigh(double temperature, double* weights) const;
  // The `count` largest values, from the largest down, ties to the lower token.
  std::vector<Candidate> largest(int64_t count) const;

 private:
  std::vector<Candidate> candidates(int64_t count) const;
  size_t first_touched(int chunk) const;

  const Kernels& k_ = kernels();
  const float* logits_;
  const int vocab_;
  const uint32_t* allowed_;
  const Sampler* sampler_;
  std::vector<double> peaks_;
  double peak_;
};

Row::Row(const float* logits, int vocab, const float* peaks, const uint32_t* allowed, const Sampler* sampler)
    : logits_(logits), vocab_(vocab), allowed_(allowed), sampler_(sampler),
      peaks_(peaks, peaks + ceil_div(vocab, kChunk)) {
  double values[kChunk];
  const auto again = [&](int c) {
    read(c, values);
    peaks_[c] = k_.chunk_peak(values);
  };
  if (allowed_) {
    for (int c = 0; c < chunks(); ++c) again(c);
  } else if (sampler_) {
    int done = -1;
    for (const Touched& t : sampler_->touched())
      if (t.token / kChunk != done) again(done = t.token / kChunk);
  }
  peak_ = *std::max_element(peaks_.begin(), peaks_.end());
}

size_t Row::first_touched(int chunk) const {
  const auto& all = sampler_->touched();
  const auto before = [](const Touched& t, int token) { return t.token < token; };
  return std::lower_bound(all.begin(), all.end(), chunk * kChunk, before) - all.begin();
}

void Row::read(int chunk, double* out) const {
  const int start = chunk * kChunk, n = std::min(kChunk, vocab_ - start);
  k_.widen_chunk(logits_ + start, n, allowed_ ? allowed_ + start / 32 : nullptr, out);
  if (!sampler_) return;
  const auto& touched = sampler_->touched();
  for (size_t i = first_touched(chunk); i < touched.size() && touched[i].token < start + n; ++i) {
    double& value = out[touched[i].token - start];
    value = sampler_->adjusted(value, touched[i]);
  }
}

std::vector<double> Row::weigh(double temperature, double* weights) const {
  std::vector<double> sums(chunks());
  double values[kChunk], unused[kChunk];
  for (int c = 0; c < chunks(); ++c) {
    read(c, values);
    sums[c] = k_.chunk_weights(values, peak_, temperature, weights ? weights + size_t{kChunk} * c : unused);
  }
  return sums;
}

// The lowest token of the largest value. Where all are -infinity, the lowest that is allowed.
int Row::best() const {
  int found = -1;
  if (peak_ == kNone) {
    for (int i = 0; found < 0 && i < vocab_; ++i)
      if (!allowed_ || (allowed_[i / 32] >> i % 32 & 1)) found = i;
    return found;
  }
  double values[kChunk];
  const int c = static_cast<int>(std::find(peaks_.begin(), peaks_.end(), peak_) - peaks_.begin());
  read(c, values);
  return c * kChunk + static_cast<int>(std::find(values, values + kChunk, peak_) - values);
}

std::vector<Candidate> Row::largest(int64_t count) const {
  std::vector<Candidate> found = candidates(count);
  const auto end = found.begin() + std::min<int64_t>(count, static_cast<int64_t>(found.size()));
  std::partial_sort(found.begin(), end, found.end(), [](const Candidate& a, const Candidate& b) {
    return a.value > b.value || (a.value == b.value && a.token < b.token);
  });
  found.erase(end, found.end());
  return found;
}

// Values that may be among the `count` largest. The count-th largest of the chunks' peaks is never above the count-th
// largest value, so it leaves few.
std::vector<Candidate> Row::candidates(int64_t count) const {
  std::vector<Candidate> found;
  if (count == 0) return found;
  std::vector<double> order;
  if (count < chunks()) {
    order = peaks_;
  } else if (count < vocab_) {
    order.resize(size_t{kChunk} * chunks());
    for (int c = 0; c < chunks(); ++c) read(c, &order[size_t{kChunk} * c]);
  }
  double limit = kNone;
  if (!order.empty()) {
    std::nth_element(order.begin(), order.begin() + (count - 1), order.end(), std::greater<double>());
    limit = order[count - 1];
  }
  double values[kChunk];
  for (int c = 0; c < chunks(); ++c) {
    if (peaks_[c] < limit) continue;
    read(c, values);
    for (int i = 0; i < std::min(kChunk, vocab_ - c * kChunk); ++i)
      if (values[i] >= limit) found.push_back({c * kChunk + i, values[i]});
  }
  return found;
}

// ---- drawing

double total_of(const std::vector<double>& weights) { return std::accumulate(weights.begin(), weights.end(), 0.0); }

// Where the weights, added up in turn, pass `goal`, or reach it if `reached` says so, and their sum before that; the
// last positive weight where they never do.
template <class Weight>
std::pair<int, double> along(int n, double goal, bool reached, Weight&& weight) {
  double before = 0;
  std::pair<int, double> last{0, 0};
  for (int i = 0; i < n; ++i) {
    const double after = before + weight(i);
    if (after > goal || (reached && after == goal)) return {i, before};
    if (weight(i) > 0) last = {i, before};
    before = after;
  }
  return last;
}

// The weights of a row, and what is left of them: those that are not below a limit.
class Weights {
 public:
  Weights(const Row& row, double temperature, std::vector<double>& room);

  // Leaves the fewest tokens, from the likeliest down, whose weights reach `top_p` of all; ties to the lower token.
  void keep_nucleus(double top_p);
  void keep_from(double weight);
  int draw(double point) const;

 private:
  double sum_up(double limit);
  void narrow();
  void trim(double low, double high, double goal);

  const Row& row_;
  const double temperature_;
  double* const weights_;
  std::vector<double> sums_;  // of the chunks
  std::vector<int> live_;     // chunks that have something left
  double limit_ = 0;
};

Weights::Weights(const Row& row, double temperature, std::vector<double>& room)
    : row_(row), temperature_(temperature), weights_((room.resize(size_t{kChunk} * row.chunks()), room.data())),
      sums_(row.weigh(temperature, weights_)), live_(row.chunks()) {
  std::iota(live_.begin(), live_.end(), 0);
}

// Sums of the weights that are not below `limit`.
double Weights::sum_up(double limit) {
  double total = 0;
  for (int c : live_) {
    kernels().chunk_sums(weights_ + size_t{kChunk} * c, 1, limit, &sums_[c]);
    total += sums_[c];
  }
  return total;
}

void Weights::narrow() {
  live_.erase(std::remove_if(live_.begin(), live_.end(), [&](int c) { return sums_[c] == 0; }), live_.end());
}

void Weights::keep_from(double weight) {
  limit_ = std::max(limit_, weight);
  sum_up(limit_);
  narrow();
}

// Tokens lighter than (1 - top_p) / V of the whole are together lighter than what top_p leaves out, so none of them is in
// the nucleus. From there up to the heaviest, the weight at which the nucleus ends is bracketed by halves, in the whole
// numbers that doubles are ordered like; only tokens within the bracket are sorted.
void Weights::keep_nucleus(double top_p) {
  const double total = total_of(sums_), goal = std::max(top_p * total, DBL_MIN);
  double low = (1 - top_p) * total / row_.vocab() * (1 - 1e-9), high = 1 + DBL_EPSILON, above = 0;
  if (sum_up(low) < goal) low = 0;
  else narrow();
  while (high > kBracket * low) {
    const double middle = between(low, high);
    if (middle == low) break;
    const double sum = sum_up(middle);
    if (sum < goal) {
      high = middle, above = sum;
    } else {
      low = middle;
      narrow();
    }
  }
  trim(low, high, goal - above);
  keep_from(low);
}

// Takes away those of the weights within [low, high) that come after the ones which reach `goal`.
void Weights::trim(double low, double high, double goal) {
  struct Token {
    int id;
    double depth, weight;
  };
  std::vector<Token> found;
  double values[kChunk];
  for (int c : live_) {
    uint64_t from_low[kChunk / 64], from_high[kChunk / 64];
    const double* weights = weights_ + size_t{kChunk} * c;
    kernels().chunk_at_least(weights, low, from_low);
    kernels().chunk_at_least(weights, high, from_high);
    if (std::equal(from_low, from_low + kChunk / 64, from_high)) continue;
    row_.read(c, values);
    for (int i = 0; i < kChunk; ++i)
      if (weights[i] >= low && weights[i] < high && weights[i] > 0)
        found.push_back({c * kChunk + i, (row_.peak() - values[i]) / temperature_, weights[i]});
  }
  const auto before = [](const Token& a, const Token& b) {
    return a.depth < b.depth || (a.depth == b.depth && a.id < b.id);
  };
  if (!std::is_sorted(found.begin(), found.end(), before)) std::sort(found.begin(), found.end(), before);
  const int n = static_cast<int>(found.size());
  const int last = along(n, goal, true, [&](int i) { return found[i].weight; }).first;
  for (int i = last + 1; i < n; ++i) weights_[found[i].id] = 0;
}

// First a chunk, then a token of it: adding up all of V in turn would be slow.
int Weights::draw(double point) const {
  const double target = point * total_of(sums_);
  const auto [chunk, before] = along(row_.chunks(), target, false, [&](int c) { return sums_[c]; });
  const double* weights = weights_ + size_t{kChunk} * chunk;
  const auto left = [&](int i) { return weights[i] >= limit_ ? weights[i] : 0.0; };
  return chunk * kChunk + along(kChunk, target - before, false, left).first;
}

// Draws from the top_k tokens, from the likeliest down, cut by top_p and min_p.
int draw_from_best(const Row& row, const SamplingRules& rules, double point) {
  const auto best = row.largest(rules.top_k);
  std::vector<double> weights(round_up(best.size(), kChunk), kNone);
  for (size_t i = 0; i < best.size(); ++i) weights[i] = best[i].value;
  for (size_t i = 0; i < weights.size(); i += kChunk)
    kernels().chunk_weights(&weights[i], row.peak(), rules.temperature, &weights[i]);
  const int n = static_cast<int>(best.size());
  const int kept = along(n, rules.top_p * total_of(weights), true, [&](int i) { return weights[i]; }).first + 1;
  for (int i = 0; i < n; ++i)
    if (i >= kept || weights[i] < rules.min_p) weights[i] = 0;
  return best[along(n, point * total_of(weights), false, [&](int i) { return weights[i]; }).first].token;
}

int choose_from(const Row& row, const SamplingRules& rules, double point) {
  if (rules.temperature == 0 || row.peak() == kNone) return row.best();
  if (rules.top_k > 0 && rules.top_k < row.vocab()) return draw_from_best(row, rules, point);
  thread_local std::vector<double> room;  // fresh pages for each token would cost more than sampling
  Weights weights(row, rules.temperature, room);
  if (rules.top_p < 1) weights.keep_nucleus(rules.top_p);
  if (rules.min_p > 0) weights.keep_from(rules.min_p);
  return weights.draw(point);
}

// ---- steps

// Natural log-probability in the model's own distribution, and those of the `count` likeliest tokens.
RowLogprob logprob_of(const float* logits, int vocab, const float* peaks, int64_t token, int64_t count) {
  const Row row(logits, vocab, peaks);
  const double norm = row.peak() + natural_log(total_of(row.weigh(1.0, nullptr)));
  RowLogprob result{token, logits[token] - norm, {}};
  for (const Candidate& c : row.largest(count)) result.top.emplace_back(c.token, c.value - norm);
  return result;
}

// The rows of a step with the peaks of their chunks, and where each ask's rows begin.
struct Rows {
  const float* logits;
  int vocab;
  size_t chunks;
  std::vector<float> peaks;
  std::vector<char> sound;

  const float* row(int r) const { return logits + static_cast<size_t>(r) * vocab; }
  const float* peaks_of(int r) const { return peaks.data() + r * chunks; }
  void look_at(int r) {
    float* p = peaks.data() + r * chunks;
    kernels().chunk_peaks(row(r), vocab, p);
    float most = p[0];
    for (size_t c = 1; c < chunks; ++c) most = most != most || p[c] < most ? most : p[c];
    sound[r] = std::isfinite(most);
  }
};

// Chooses by the last known row, and by the draft's rows while the token chosen before is the one that was guessed.
void verify(const Rows& rows, int first, const Ask& ask, Chosen& chosen) {
  Sampler& sampler = *ask.sampler;
  const size_t words = ceil_div(rows.vocab, 32);
  for (int i = 0; i <= static_cast<int>(ask.draft.size()); ++i) {
    const int r = first + ask.known() - 1 + i;
    if (i > 0 && (chosen.tokens.back() != ask.draft[i - 1] || !rows.sound[r])) return;
    const Row row(rows.row(r), rows.vocab, rows.peaks_of(r), ask.masks ? ask.masks + i * words : nullptr,
                  sampler.touched().empty() ? nullptr : &sampler);
    const int token = choose_from(row, sampler.rules(), ask.points.empty() ? 0 : ask.points[i]);
    sampler.add(token);
    chosen.tokens.push_back(token);
    if (ask.logprobs)
      chosen.logprobs.push_back(logprob_of(rows.row(r), rows.vocab, rows.peaks_of(r), token, *ask.logprobs));
  }
}

template <class F>
void spread(int units, size_t work, F&& f) {
  if (work >= kInlineWork) return parallel(units, f);
  for (int i = 0; i < units; ++i) f(i);
}

struct Place {
  int ask, row;  // of the ask's scored rows, or -1: its choice
};

}  // namespace

std::vector<Chosen> choose(const float* logits, int vocab, const std::vector<Ask>& asks) {
  static std::mutex turn;
  std::lock_guard<std::mutex> lock(turn);
  std::vector<int> first(asks.size() + 1, 0);
  for (size_t i = 0; i < asks.size(); ++i) first[i + 1] = first[i] + asks[i].rows;
  const int count = first.back();
  const size_t chunks = ceil_div(vocab, kChunk);
  Rows rows{logits, vocab, chunks, std::vector<float>(chunks * count), std::vector<char>(count)};
  spread(count, static_cast<size_t>(count) * vocab, [&](int r) { rows.look_at(r); });

  std::vector<Chosen> chosen(asks.size());
  std::vector<Place> places;
  for (int i = 0; i < static_cast<int>(asks.size()); ++i) {
    const char* sound = rows.sound.data() + first[i];
    chosen[i].sound = std::all_of(sound, sound + asks[i].known(), [](char s) { return s; });
    if (!chosen[i].sound) continue;
    chosen[i].scores.resize(asks[i].score.size());
    if (asks[i].choose) places.push_back({i, -1});
    for (int r = 0; r < static_cast<int>(asks[i].score.size()); ++r) places.push_back({i, r});
  }
  spread(static_cast<int>(places.size()), places.size() * vocab, [&](int unit) {
    const Place& p = places[unit];
    const Ask& ask = asks[p.ask];
    if (p.row < 0) return verify(rows, first[p.ask], ask, chosen[p.ask]);
    const int r = first[p.ask] + p.row;
    chosen[p.ask].scores[p.row] =
        logprob_of(rows.row(r), vocab, rows.peaks_of(r), ask.score[p.row], ask.score_logprobs.value_or(0));
  });
  return chosen;
}

// x = 2^k m with m near 1, and ln m = 2 artanh f = 2 (f + f^3 / 3 + ...) with f = (m - 1) / (m + 1), |f| < 0.172.
double natural_log(double x) {
  if (x > DBL_MAX) return x;
  int k;
  double m = std::frexp(x, &k);
  if (m < 0.70710678118654752) m *= 2, --k;
  const double f = (m - 1) / (m + 1), square = f * f;
  double series = 0;
  for (int odd = 23; odd >= 3; odd -= 2) series = (series + 1.0 / odd) * square;
  const double small = k * 0x1.a39ef35793c76p-33 + 2 * f * series;
  return k * 0x1.62e42fee00000p-1 + (2 * f + small);
}

}  // namespace deepwell
