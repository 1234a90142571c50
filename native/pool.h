// A small pool of threads. Work is a number of units; which thread takes which unit never affects a result.
#pragma once
#include <atomic>
#include <type_traits>

namespace deepwell {

// Threads of the process, the caller's included; takes effect at the next piece of work. Raises for n < 1.
void set_threads(int n);
int threads();

// Runs work(context, unit) for every unit in [0, units), on the caller and on the pool's threads, and waits.
// Calls from several threads take turns; `work` must not throw and must not call this again.
void run_units(int units, void (*work)(void* context, int unit), void* context);

template <class F>
void parallel(int units, F&& f) {
  run_units(units, [](void* context, int unit) { (*static_cast<std::remove_reference_t<F>*>(context))(unit); }, &f);
}

}  // namespace deepwell
