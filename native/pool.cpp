#include "pool.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <unistd.h>

#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#include "common.h"

namespace deepwell {

namespace {

constexpr int kSpinsBeforeSleep = 20000;  // about 0.2 to 0.5 ms: longer than the gaps inside a step

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// A job is published as a ticket: its number in the high half, units not yet taken in the low half. A thread takes a
// unit by decrementing the ticket; only then may it read the job, which cannot change until that unit is reported done.
// Late or missing workers (a busy machine, a forked child) cost speed only: the caller takes what is left.
class Pool {
 public:
  explicit Pool(int n) : pid_(getpid()) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);  // signals belong to Python's threads
    for (int i = 1; i < n; ++i) workers_.emplace_back([this] { loop(); });
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
  }

  ~Pool() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stop_ = true;
    }
    wake_.notify_all();
    for (auto& w : workers_) w.join();
  }

  pid_t pid() const { return pid_; }
  int size() const { return static_cast<int>(workers_.size()) + 1; }

  void run(int units, void (*work)(void*, int), void* context) {
    if (units <= 0) return;
    if (units == 1 || workers_.empty()) {
      for (int i = 0; i < units; ++i) work(context, i);
      return;
    }
    work_ = work;
    context_ = context;
    units_ = units;
    pending_.store(units, std::memory_order_relaxed);
    const uint64_t number = (ticket_.load(std::memory_order_relaxed) >> 32) + 1;
    ticket_.store(number << 32 | static_cast<uint32_t>(units));
    if (sleepers_.load() > 0) {
      std::lock_guard<std::mutex> lock(mutex_);
      wake_.notify_all();
    }
    take_units();
    for (int spins = 0; pending_.load(std::memory_order_acquire) > 0; ++spins)
      spins < kSpinsBeforeSleep ? relax() : static_cast<void>(sched_yield());
  }

 private:
  static bool open(uint64_t ticket) { return static_cast<uint32_t>(ticket) != 0; }

  bool take_units() {
    bool any = false;
    uint64_t ticket = ticket_.load(std::memory_order_acquire);
    while (open(ticket)) {
      if (!ticket_.compare_exchange_weak(ticket, ticket - 1, std::memory_order_acq_rel, std::memory_order_acquire))
        continue;
      work_(context_, units_ - static_cast<int>(static_cast<uint32_t>(ticket)));
      pending_.fetch_sub(1, std::memory_order_release);
      any = true;
      ticket = ticket_.load(std::memory_order_acquire);
    }
    return any;
  }

  void loop() {
    int spins = 0;
    while (!stop_.load(std::memory_order_relaxed)) {
      if (take_units()) spins = 0;
      if (++spins < kSpinsBeforeSleep) {
        relax();
        continue;
      }
      std::unique_lock<std::mutex> lock(mutex_);
      sleepers_.fetch_add(1);
      wake_.wait(lock, [this] { return stop_ || open(ticket_.load()); });
      sleepers_.fetch_sub(1);
      spins = 0;
    }
  }

  const pid_t pid_;
  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::atomic<bool> stop_{false};
  std::atomic<int> sleepers_{0};
  alignas(64) std::atomic<uint64_t> ticket_{0};
  alignas(64) std::atomic<int> pending_{0};
  void (*work_)(void*, int) = nullptr;
  void* context_ = nullptr;
  int units_ = 0;
};

// Never freed: at exit the workers sleep on it until the process ends.
std::mutex* turn = new std::mutex;
Pool* pool = nullptr;
std::atomic<int> wanted{0};

int usable_processors() {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
#endif
  const int n = static_cast<int>(std::thread::hardware_concurrency());
  return n > 0 ? n : 1;
}

// The child of a fork has no workers and perhaps a locked mutex: it starts afresh.
void after_fork() {
  turn = new std::mutex;
  pool = nullptr;
}

Pool& current() {
  static const int registered = pthread_atfork(nullptr, nullptr, after_fork);
  static_cast<void>(registered);
  const int n = threads();
  if (pool && pool->size() != n) {
    delete pool;
    pool = nullptr;
  }
  if (!pool) pool = new Pool(n);
  return *pool;
}

}  // namespace

void set_threads(int n) {
  require(n >= 1 && n <= 1024, "threads must be within 1..1024, not " + std::to_string(n));
  wanted = n;
}

int threads() {
  const int n = wanted.load();
  return n > 0 ? n : usable_processors();
}

void run_units(int units, void (*work)(void*, int), void* context) {
  std::lock_guard<std::mutex> lock(*turn);
  current().run(units, work, context);
}

}  // namespace deepwell
