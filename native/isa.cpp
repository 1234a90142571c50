#include "isa.h"

#include <atomic>
#include <cstdlib>

#include "common.h"

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace deepwell {

namespace scalar { extern const Kernels table; }
#ifdef DEEPWELL_HAS_AVX2
namespace avx2 { extern const Kernels table; }
#endif
#ifdef DEEPWELL_HAS_AVX512
namespace avx512 { extern const Kernels table; }
namespace avx512_vnni { extern const Kernels table; }
#endif
#ifdef DEEPWELL_HAS_AVX512_BF16
namespace avx512_bf16 { extern const Kernels table; }
#endif
#ifdef DEEPWELL_HAS_NEON
namespace neon { extern const Kernels table; }
namespace neon_dot { extern const Kernels table; }
#endif

namespace {

#if defined(__x86_64__)
bool has_avx2() {
  unsigned a, b, c = 0, d;
  const bool f16c = __get_cpuid(1, &a, &b, &c, &d) && (c >> 29 & 1);
  return f16c && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
}
#endif

#ifdef DEEPWELL_HAS_NEON
bool has_dot_product() {
#if defined(__APPLE__)
  return true;  // every Apple processor with this architecture that runs a supported system has it
#else
  return getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
#endif
}
#endif

std::vector<const Kernels*> usable() {
  std::vector<const Kernels*> found;
#ifdef DEEPWELL_HAS_AVX512
  if (has_avx512()) {
    const bool vnni = __builtin_cpu_supports("avx512vnni");
#ifdef DEEPWELL_HAS_AVX512_BF16
    if (vnni && __builtin_cpu_supports("avx512bf16")) found.push_back(&avx512_bf16::table);
#endif
    if (vnni) found.push_back(&avx512_vnni::table);
    found.push_back(&avx512::table);
  }
#endif
#ifdef DEEPWELL_HAS_AVX2
  if (has_avx2()) found.push_back(&avx2::table);
#endif
#ifdef DEEPWELL_HAS_NEON
  if (has_dot_product()) found.push_back(&neon_dot::table);
  found.push_back(&neon::table);
#endif
  found.push_back(&scalar::table);
  return found;
}

const Kernels* find(const std::string& name) {
  std::string names;
  for (const Kernels* k : usable()) {
    if (name == k->name) return k;
    names += (names.empty() ? "" : ", ") + std::string(k->name);
  }
  fail("instruction set '" + name + "' is not available; this machine has: " + names);
}

const Kernels* first_choice() {
  const char* forced = std::getenv("DEEPWELL_ISA");
  return forced && *forced ? find(forced) : usable().front();
}

std::atomic<const Kernels*> chosen{nullptr};

}  // namespace

const Kernels& kernels() {
  const Kernels* k = chosen.load(std::memory_order_acquire);
  if (!k) {
    k = first_choice();
    chosen.store(k, std::memory_order_release);
  }
  return *k;
}

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const Kernels* k : usable()) names.emplace_back(k->name);
  return names;
}

std::string isa() { return kernels().name; }

void set_isa(const std::string& name) { chosen.store(find(name), std::memory_order_release); }

}  // namespace deepwell
