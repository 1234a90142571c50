#include "limits.h"

#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstring>

#include "common.h"
#include "memory.h"
#include "pool.h"

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace deepwell {

namespace {

constexpr size_t kChunk = size_t{1} << 20;  // a thread's unit of reading: long enough that taking it costs nothing
constexpr int64_t kPasses = 2'000'000;      // of a peak loop: about 10 ms
constexpr int kMaxRounds = 10'000;

double seconds_of(const std::chrono::steady_clock::time_point& begun) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begun).count();
}

// ---- reading: four independent streams of vectors, each byte read once, folded so that no load can be dropped

template <class V>
[[gnu::always_inline]] inline uint64_t fold(const uint8_t* p, size_t bytes) {
  V a{}, b{}, c{}, d{};
  for (const V *v = reinterpret_cast<const V*>(p), *end = reinterpret_cast<const V*>(p + bytes); v < end; v += 4) {
    a ^= v[0];
    b ^= v[1];
    c ^= v[2];
    d ^= v[3];
  }
  a ^= b ^ c ^ d;
  uint64_t sum = 0;
  for (size_t i = 0; i < sizeof(V) / sizeof(uint64_t); ++i) sum ^= a[i];
  return sum;
}

using Read = uint64_t (*)(const uint8_t*, size_t);
typedef uint64_t V16 __attribute__((vector_size(16), may_alias));

uint64_t read_16(const uint8_t* p, size_t bytes) { return fold<V16>(p, bytes); }

// ---- peaks: one loop per instruction, enough accumulators to hide its latency

struct Loop {
  const char* instruction = nullptr;
  double ops_per_pass = 0;
  void (*run)(int64_t passes) = nullptr;
};

#if defined(__x86_64__)

typedef uint64_t V32 __attribute__((vector_size(32), may_alias));
typedef uint64_t V64 __attribute__((vector_size(64), may_alias));

__attribute__((target("avx2"))) uint64_t read_32(const uint8_t* p, size_t bytes) { return fold<V32>(p, bytes); }
__attribute__((target("avx512f"))) uint64_t read_64(const uint8_t* p, size_t bytes) { return fold<V64>(p, bytes); }

#define EACH_12(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)
#define CLOBBER_YMM                                                                                               \
  "ymm0", "ymm1", "ymm2", "ymm3", "ymm4", "ymm5", "ymm6", "ymm7", "ymm8", "ymm9", "ymm10", "ymm11", "ymm12",      \
      "ymm13", "ymm14", "ymm15", "cc"
#define CLOBBER_ZMM                                                                                               \
  "zmm0", "zmm1", "zmm2", "zmm3", "zmm4", "zmm5", "zmm6", "zmm7", "zmm8", "zmm9", "zmm10", "zmm11", "zmm12",      \
      "zmm13", "zmm14", "zmm15", "cc"

// Registers 0 to 11 accumulate, 14 and 15 are the factors; "vzeroall" makes every value zero, so that none is slow.
#define PEAK_LOOP(name, isa, body, clobber)                                        \
  __attribute__((target(isa))) void name(int64_t passes) {                         \
    asm volatile("vzeroall\n1:\n" EACH_12(body) "dec %0\njnz 1b\nvzeroupper\n"     \
                 : "+r"(passes)                                                    \
                 :                                                                 \
                 : clobber);                                                       \
  }

#define FMA_YMM(n) "vfmadd231ps %%ymm14, %%ymm15, %%ymm" #n "\n"
#define FMA_ZMM(n) "vfmadd231ps %%zmm14, %%zmm15, %%zmm" #n "\n"
#define DOT_ZMM(n) "vpdpbusd %%zmm14, %%zmm15, %%zmm" #n "\n"
#define BF16_ZMM(n) "vdpbf16ps %%zmm14, %%zmm15, %%zmm" #n "\n"
// Without a dot product instruction: bytes to pairs of 16 bits, to 32 bits, added.
#define DOT_IN_STEPS(r, n)                                             \
  "vpmaddubsw %%" r "14, %%" r "15, %%" r "12\n"                       \
  "vpmaddwd %%" r "12, %%" r "13, %%" r "12\n"                         \
  "vpaddd %%" r "12, %%" r #n ", %%" r #n "\n"
#define MADD_YMM(n) DOT_IN_STEPS("ymm", n)
#define MADD_ZMM(n) DOT_IN_STEPS("zmm", n)
// {vex} vpdpbusd %ymm14, %ymm15, %ymm<n> as bytes, for assemblers older than AVX-VNNI.
#define VEX_DOT_YMM(n) ".byte 0xc4, 0xc2 - (" #n " / 8) * 0x80, 0x05, 0x50, 0xc6 + (" #n " & 7) * 8\n"

PEAK_LOOP(fma_ymm, "avx2,fma", FMA_YMM, CLOBBER_YMM)
PEAK_LOOP(fma_zmm, "avx512f", FMA_ZMM, CLOBBER_ZMM)
PEAK_LOOP(dot_zmm, "avx512f", DOT_ZMM, CLOBBER_ZMM)
PEAK_LOOP(bf16_zmm, "avx512f", BF16_ZMM, CLOBBER_ZMM)
PEAK_LOOP(madd_ymm, "avx2", MADD_YMM, CLOBBER_YMM)
PEAK_LOOP(madd_zmm, "avx512bw", MADD_ZMM, CLOBBER_ZMM)
PEAK_LOOP(vex_dot_ymm, "avx2", VEX_DOT_YMM, CLOBBER_YMM)

struct Features {
  bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw");
  bool avx512_vnni = false, avx512_bf16 = false, avx_vnni = false;
  Features() {
    unsigned a, b, c, d;
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d)) avx512_vnni = avx512 && (c >> 11 & 1);
    if (!__get_cpuid_count(7, 1, &a, &b, &c, &d)) return;
    avx512_bf16 = avx512 && (a >> 5 & 1);
    avx_vnni = avx2 && (a >> 4 & 1);
  }
};

Read best_read() {
  const Features has;
  return has.avx512 ? read_64 : has.avx2 ? read_32 : read_16;
}

Loop int8_loop() {
  const Features has;
  if (has.avx512_vnni) return {"vpdpbusd, 512 bits", 12 * 128, dot_zmm};
  if (has.avx_vnni) return {"vpdpbusd, 256 bits", 12 * 64, vex_dot_ymm};
  if (has.avx512) return {"vpmaddubsw, 512 bits", 12 * 128, madd_zmm};
  if (has.avx2) return {"vpmaddubsw, 256 bits", 12 * 64, madd_ymm};
  return {};
}

Loop bf16_loop() { return Features().avx512_bf16 ? Loop{"vdpbf16ps, 512 bits", 12 * 64, bf16_zmm} : Loop{}; }

Loop fma_loop() {
  const Features has;
  if (has.avx512) return {"vfmadd231ps, 512 bits", 12 * 32, fma_zmm};
  if (has.avx2) return {"vfmadd231ps, 256 bits", 12 * 16, fma_ymm};
  return {};
}

#elif defined(__aarch64__)

#define EACH_16(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13) X(14) X(15)
#define PEAK_LOOP(name, body)                                                                                      \
  void name(int64_t passes) {                                                                                      \
    asm volatile("movi v30.4s, #0\nmovi v31.4s, #0\n1:\n" EACH_16(body) "subs %0, %0, #1\nb.ne 1b\n"               \
                 : "+r"(passes)                                                                                    \
                 :                                                                                                 \
                 : "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v8", "v9", "v10", "v11", "v12", "v13", "v14",  \
                   "v15", "v30", "v31", "cc");                                                                     \
  }

#define FMA(n) "fmla v" #n ".4s, v30.4s, v31.4s\n"
// sdot and bfdot v<n>.4s, v30, v31 as numbers, for compilers told of no more than the base architecture.
#define SDOT(n) ".inst 0x4e9f97c0 + " #n "\n"
#define BFDOT(n) ".inst 0x6e5fffc0 + " #n "\n"
PEAK_LOOP(fma_neon, FMA)
PEAK_LOOP(sdot_neon, SDOT)
PEAK_LOOP(bfdot_neon, BFDOT)

#if defined(__linux__)
bool has_sdot() { return getauxval(AT_HWCAP) >> 20 & 1; }
bool has_bfdot() { return getauxval(AT_HWCAP2) >> 14 & 1; }
#else
bool has_sdot() { return true; }  // every Apple processor of this architecture that runs a desktop system
bool has_bfdot() { return false; }
#endif

Read best_read() { return read_16; }
Loop int8_loop() { return has_sdot() ? Loop{"sdot, 128 bits", 16 * 32, sdot_neon} : Loop{}; }
Loop bf16_loop() { return has_bfdot() ? Loop{"bfdot, 128 bits", 16 * 16, bfdot_neon} : Loop{}; }
Loop fma_loop() { return {"fmla, 128 bits", 16 * 8, fma_neon}; }

#else

Read best_read() { return read_16; }
Loop int8_loop() { return {}; }
Loop bf16_loop() { return {}; }
Loop fma_loop() { return {}; }

#endif

Loop loop_of(const std::string& kind) {
  if (kind == "int8") return int8_loop();
  if (kind == "bf16") return bf16_loop();
  if (kind == "fma") return fma_loop();
  fail("peak '" + kind + "' is unknown; there are: int8, bf16, fma");
}

void check_rounds(int rounds) {
  require(rounds >= 1 && rounds <= kMaxRounds,
          "rounds must be within 1.." + std::to_string(kMaxRounds) + ", not " + std::to_string(rounds));
}

}  // namespace

std::vector<double> read_bandwidth(size_t bytes, int rounds) {
  require(bytes >= kChunk, "bytes must be at least " + std::to_string(kChunk) + ", not " + std::to_string(bytes));
  check_rounds(rounds);
  const int units = static_cast<int>(bytes / kChunk);
  Buffer buffer(units * kChunk, true);
  parallel(units, [&](int unit) { std::memset(buffer.bytes() + unit * kChunk, unit + 1, kChunk); });
  const Read read = best_read();
  static std::atomic<uint64_t> sink;
  std::vector<double> rates;
  for (int round = 0; round < rounds; ++round) {
    const auto begun = std::chrono::steady_clock::now();
    parallel(units, [&](int unit) { sink ^= read(buffer.bytes() + unit * kChunk, kChunk); });
    rates.push_back(static_cast<double>(buffer.size()) / seconds_of(begun));
  }
  return rates;
}

std::optional<Peak> peak(const std::string& kind, int rounds) {
  check_rounds(rounds);
  const Loop loop = loop_of(kind);
  if (!loop.run) return std::nullopt;
  Peak result{loop.instruction, {}};
  const int units = threads();
  for (int round = 0; round < rounds; ++round) {
    const auto begun = std::chrono::steady_clock::now();
    parallel(units, [&](int) { loop.run(kPasses); });
    result.rates.push_back(units * kPasses * loop.ops_per_pass / seconds_of(begun));
  }
  return result;
}

}  // namespace deepwell
