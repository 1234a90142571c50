#pragma once

#include <pthread.h>
#include <unistd.h>

#include <atomic>

#include <nanobind/nanobind.h>

namespace deepwell {

// Python without its lock, for as long as C++ computes. A daemon thread that comes back while the interpreter ends would
// be ended by Python 3.11 to 3.13 by unwinding its stack, which C++ answers with abort(): it sleeps instead, as in 3.14.
class Released {
 public:
  Released() : state_(PyEval_SaveThread()) {}
  Released(const Released&) = delete;
  Released& operator=(const Released&) = delete;

  ~Released() {
    returning_.fetch_add(1);
    if (ending_.load() && !pthread_equal(pthread_self(), last_)) {
      returning_.fetch_sub(1);
      for (;;) pause();
    }
    PyEval_RestoreThread(state_);
    returning_.fetch_sub(1);
  }

  // To be called once, by the module: tells the exit of the interpreter.
  static void watch_exit() {
    pthread_atfork(nullptr, nullptr, [] { returning_.store(0); });
    nanobind::module_::import_("atexit").attr("register")(nanobind::cpp_function(&Released::end));
  }

 private:
  // By the thread that ends the interpreter, before it does: who was about to come back still does.
  static void end() {
    last_ = pthread_self();
    PyThreadState* state = PyEval_SaveThread();
    ending_.store(true);
    while (returning_.load() > 0) usleep(100);
    PyEval_RestoreThread(state);
  }

  static inline std::atomic<int> returning_{0};
  static inline std::atomic<bool> ending_{false};
  static inline pthread_t last_{};
  PyThreadState* state_;
};

}  // namespace deepwell
