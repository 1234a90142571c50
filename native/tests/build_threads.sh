#!/usr/bin/env bash
# Builds the program for ThreadSanitizer: native/tests/build_threads.sh OUTPUT with the compiler $CXX.
# With the plain kernels alone: no other writes beyond its result (kernels_test), and these compile in seconds.
set -euo pipefail
out=$(realpath -m "$1")
cd "$(dirname "${BASH_SOURCE[0]}")/.."
cxx=${CXX:-g++}
objects=$out.objects
mkdir -p "$objects"

flags=(-std=c++17 -O1 -gline-tables-only -Wall -Wextra -Wno-uninitialized -Wno-maybe-uninitialized -ffp-contract=off
  -fno-math-errno -Wno-unused-function -pthread -fsanitize=thread)
if ! $cxx --version | grep -q clang; then flags[2]=-g1; fi
linked=() jobs=()
for source in tests/threads tests/checks program batch dense attention index experts routing matrix blocks memory pool \
  isa kernels_scalar; do
  linked+=("$objects/${source//\//_}.o")
  $cxx "${flags[@]}" -c "$source.cpp" -o "${linked[-1]}" & jobs+=($!)
  if ((${#jobs[@]} >= $(nproc))); then wait "${jobs[0]}"; jobs=("${jobs[@]:1}"); fi
done
for job in "${jobs[@]}"; do wait "$job"; done
$cxx "${flags[@]}" "${linked[@]}" -o "$out"
