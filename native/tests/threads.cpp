// Everything that several threads may do at once, under ThreadSanitizer: `threads SECONDS` (make tsan).
//
// Plans run on caches of their own, two of them the same plan; pieces of work are handed to the pool from outside of
// any plan; the number of threads changes; matrices are packed, plans are recorded. Every result is compared with what
// it was before there was company. A race is reported by the sanitizer, which then ends the program with 66.
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "../isa.h"
#include "../pool.h"
#include "../program.h"
#include "checks.h"

namespace deepwell {
namespace {

constexpr int kWords = 40, kWidth = 64, kExperts = 4, kInter = 32;
constexpr GqaShape kGqa{4, 2, 16, 0.25f};
constexpr MlaShape kMla{4, 16, 8, 16, 32, 0.2f};
constexpr IndexShape kIndex{2, 16, 20, 0.1f};
const std::vector<int> kCacheWidths{2 * 2 * 16, 32 + 8, 16};

std::shared_ptr<Matrix> matrix(int count, int rows, int cols, Storage storage, int seed, bool pairs = false) {
  auto made = std::make_shared<Matrix>(count, rows, cols, storage, pairs);
  Random random(seed);
  for (int i = 0; i < count; ++i) made->fill(i, 0, rows, random.floats(static_cast<size_t>(rows) * cols).data());
  return made;
}

VectorPtr ones(int size) {
  auto made = std::make_shared<Vector>();
  made->values.assign(size, 1.0f);
  return made;
}

struct Weights {
  MatrixPtr table = matrix(1, kWords, kWidth, Storage::kFloat32, 1), qkv = matrix(1, 128, kWidth, Storage::kInt8, 2),
            o = matrix(1, kWidth, 64, Storage::kInt4, 3), q = matrix(1, 96, kWidth, Storage::kBfloat16, 4),
            kv = matrix(1, 40, kWidth, Storage::kInt8, 5), k_b = matrix(4, 32, 16, Storage::kInt8, 6),
            v_b = matrix(4, 16, 32, Storage::kInt8, 7), index = matrix(1, 50, kWidth, Storage::kFloat32, 8),
            router = matrix(1, kExperts, kWidth, Storage::kFloat32, 9),
            gate_up = matrix(kExperts, 2 * kInter, kWidth, Storage::kInt4, 10, true),
            down = matrix(kExperts, kWidth, kInter, Storage::kInt8, 11),
            shared_gate_up = matrix(1, 2 * kInter, kWidth, Storage::kFloat32, 12),
            shared_down = matrix(1, kWidth, kInter, Storage::kFloat32, 13),
            head = matrix(1, kWords, kWidth, Storage::kInt8, 14);
  VectorPtr norm = ones(kWidth);
};

// Both kinds of attention, an indexer and experts.
void record(Program& p, const Weights& w) {
  View x = p.embed(w.table), h = p.rms_norm(x, w.norm, 1e-6f, 1);
  auto parts = p.split(p.linear(h, w.qkv, nullptr), {64, 32, 32});
  x = p.add(x, p.linear(p.gqa(parts[0], parts[1], parts[2], 0, kGqa), w.o, nullptr));
  h = p.rms_norm(x, w.norm, 1e-6f, 1);
  parts = p.split(p.linear(h, w.index, nullptr), {32, 16, 2});
  const View chosen = p.index(parts[0], parts[1], parts[2], 2, kIndex);
  parts = p.split(p.linear(h, w.kv, nullptr), {32, 8});
  const View q = p.linear(h, w.q, nullptr);
  x = p.add(x, p.linear(p.mla(q, parts[0], parts[1], w.k_b, w.v_b, 1, kMla, &chosen), w.o, nullptr));
  h = p.rms_norm(x, w.norm, 1e-6f, 1);
  const Routing routing{kExperts, 2, true, Method::kGreedy, 1, 1, true, 1.0f};
  x = p.add(x, p.moe(h, w.router, nullptr, w.gate_up, w.down, w.shared_gate_up, w.shared_down, routing));
  p.finish(p.head(p.select(p.rms_norm(x, w.norm, 1e-6f, 1)), w.head));
}

// The logits of two sequences, a prompt and then token by token.
std::vector<float> answers(Program& p, bool bfloat16) {
  Cache cache(kCacheWidths, 4, bfloat16);
  const std::vector<int32_t> table{2, 0, 3, 1};
  std::vector<float> all;
  for (int first = 0, next; first < 72; first = next) {
    next = first == 0 ? 62 : first + 5;
    std::vector<int32_t> tokens, positions, sequence, selected;
    for (int s = 0; s < 2; ++s)
      for (int at = first; at < next; ++at) {
        selected.push_back(static_cast<int32_t>(tokens.size()));
        tokens.push_back((7 * at + s) % kWords), positions.push_back(at), sequence.push_back(s);
      }
    const int rows = static_cast<int>(tokens.size());
    std::vector<float> logits(static_cast<size_t>(rows) * kWords);
    p.run({tokens.data(), positions.data(), sequence.data(), table.data(), selected.data(), rows, 2, 2, rows}, cache,
          logits.data());
    all.insert(all.end(), logits.begin(), logits.end());
  }
  return all;
}

void demand(bool good, const char* what) {
  if (good) return;
  std::fprintf(stderr, "FAIL %s\n", what);
  std::abort();
}

void pause(int milliseconds) { std::this_thread::sleep_for(std::chrono::milliseconds(milliseconds)); }

struct Deed {
  const char* name;
  std::function<void()> once;
};

// Each deed over and over on a thread of its own, until the time is up. How often, by name.
std::string all_at_once(const std::vector<Deed>& deeds, double seconds) {
  std::atomic<bool> stop{false};
  std::vector<long> times(deeds.size());
  std::vector<std::thread> threads;
  for (size_t i = 0; i < deeds.size(); ++i)
    threads.emplace_back([&, i] {
      for (; !stop.load(); ++times[i]) deeds[i].once();
    });
  std::this_thread::sleep_for(std::chrono::duration<double>(seconds));
  stop = true;
  std::string said;
  for (size_t i = 0; i < deeds.size(); ++i) {
    threads[i].join();
    demand(times[i] > 0, deeds[i].name);
    said += (i ? ", " : "") + std::string(deeds[i].name) + " " + std::to_string(times[i]);
  }
  return said;
}

void hand_out(int units) {
  std::vector<int> done(units);  // no atomics: each unit is one thread's, and the caller sees them all at the end
  parallel(units, [&](int unit) { done[unit] += unit + 1; });
  for (int i = 0; i < units; ++i) demand(done[i] == i + 1, "a unit was not done once");
}

void pack(const std::vector<float>& values) {
  Matrix packed(2, 48, kWidth, Storage::kInt4), plain(2, 48, kWidth, Storage::kFloat32);
  std::vector<float> row(kWidth);
  for (int i = 0; i < 2; ++i) packed.fill(i, 0, 48, values.data()), plain.fill(i, 0, 48, values.data());
  plain.read_row(1, 47, row.data());
  demand(std::equal(row.begin(), row.end(), values.end() - kWidth), "a packed row is another");
}

void run(double seconds) {
  const Weights weights;
  Program first, second;
  record(first, weights), record(second, weights);
  const std::vector<float> exact = answers(first, false), rounded = answers(second, true);
  const std::vector<float> values = Random(15).floats(48 * kWidth);
  std::atomic<int> count{0};
  const auto same = [&](Program& p, bool bfloat16) {
    demand(answers(p, bfloat16) == (bfloat16 ? rounded : exact), "a plan's logits are others");
  };
  const std::string said = all_at_once(
      {{"runs of one plan", [&] { same(first, false); }},
       {"of it again", [&] { same(first, false); }},
       {"of another", [&] { same(second, true); }},
       {"recordings", [&] {
          Program p;
          record(p, weights);
          same(p, false);
        }},
       {"pieces of work", [&] {
          hand_out(1 + count.fetch_add(1) % 9);
          pause(1);  // or the plans would hardly have a turn
        }},
       {"matrices", [&] {
          pack(values);
          pause(1);
        }},
       {"numbers of threads", [&] {
          set_threads(1 + count.fetch_add(1) % 4);
          set_isa(isa());
          pause(20);
        }}},
      seconds);
  std::printf("threads: %s\n", said.c_str());
}

}  // namespace
}  // namespace deepwell

int main(int argc, char** argv) {
  try {
    deepwell::run(argc > 1 ? std::atof(argv[1]) : 20);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "FAIL %s\n", error.what());
    return 1;
  }
}
