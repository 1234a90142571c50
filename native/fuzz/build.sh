#!/usr/bin/env bash
# Builds the fuzzer of the native backend: native/fuzz/build.sh OUTPUT [OBJECTS]. Needs clang with its sanitizers.
set -euo pipefail
out=$(realpath -m "$1") objects=$(realpath -m "${2:-$1.objects}")
cd "$(dirname "${BASH_SOURCE[0]}")/.."
clang=${FUZZ_CXX:-$(command -v clang++-16 || command -v clang++)}
mkdir -p "$objects"

flags=(-std=c++17 -O1 -gline-tables-only -ffp-contract=off -fno-math-errno -I. -pthread
  -fsanitize=fuzzer-no-link,address -fno-sanitize-recover=all)
sources=(fuzz/fuzz_native.cpp program.cpp batch.cpp dense.cpp attention.cpp index.cpp experts.cpp routing.cpp matrix.cpp
  blocks.cpp memory.cpp pool.cpp isa.cpp kernels_scalar.cpp)
case $(uname -m) in
  x86_64)
    # Not avx512_bf16: clang 16 never comes to an end with it under the fuzzer's instrumentation.
    sources+=(kernels_avx2.cpp kernels_avx512.cpp kernels_avx512_vnni.cpp)
    flags+=(-DDEEPWELL_HAS_AVX2 -DDEEPWELL_HAS_AVX512)
    ;;
  aarch64 | arm64)
    sources+=(kernels_neon.cpp kernels_neon_dot.cpp)
    flags+=(-DDEEPWELL_HAS_NEON)
    ;;
esac
avx512="-mavx2 -mfma -mf16c -mavx512f -mavx512dq -mavx512bw -mavx512vl"
declare -A isa=(
  [kernels_avx2.cpp]="-mavx2 -mfma -mf16c"
  [kernels_avx512.cpp]="$avx512"
  [kernels_avx512_vnni.cpp]="$avx512 -mavx512vnni"
  [kernels_neon_dot.cpp]="-march=armv8.2-a+dotprod"
)

compile() { # shellcheck disable=SC2086
  # The kernels do without the sanitizer for undefined behaviour, which takes minutes to compile there.
  case $1 in kernels_*) checks= ;; *) checks=-fsanitize=undefined ;; esac
  "$clang" "${flags[@]}" $checks ${isa[$1]:-} -c "$1" -o "$objects/$(basename "$1" .cpp).o"
}
linked=() wait_for=()
for source in "${sources[@]}"; do
  compile "$source" & wait_for+=($!)
  linked+=("$objects/$(basename "$source" .cpp).o")
  if ((${#wait_for[@]} >= $(nproc))); then wait "${wait_for[0]}"; wait_for=("${wait_for[@]:1}"); fi
done
for job in "${wait_for[@]}"; do wait "$job"; done
"$clang" -pthread -fsanitize=fuzzer,address,undefined "${linked[@]}" -o "$out"
