#!/usr/bin/env bash
# Builds the test program of the kernels: native/tests/build.sh OUTPUT [LIBRARY] with the compiler $CXX and $CXXFLAGS.
# LIBRARY is a folder of objects that are compiled already, the installed backend's; else everything is compiled.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
out=$(realpath -m "$OLDPWD/$1") library=${2:+$(realpath "$OLDPWD/$2")}
cxx=${CXX:-g++}
objects=$out.objects
mkdir -p "$objects"

flags=(-std=c++17 -O1 -Wall -Wextra -Wno-psabi -ffp-contract=off -fno-math-errno)
exact=(-std=c++17 -O3 -Wall -Wextra -Wno-uninitialized -Wno-maybe-uninitialized -ffp-contract=off -fno-math-errno)
architecture=$($cxx -dumpmachine)
architecture=${architecture%%-*}
sources=(matrix search blocks memory pool isa)
declare -A kernel_flags
while IFS='|' read -r name for options; do
  name=${name// /} for=${for// /}
  case $name in '#'* | '') continue ;; esac
  if [ "$for" != any ] && [ "$for" != "${architecture/arm64/aarch64}" ]; then continue; fi
  sources+=("kernels_$name")
  kernel_flags[kernels_$name]=$options
  flags+=("-DDEEPWELL_HAS_${name^^}")
done < instruction-sets.txt

compile() { # shellcheck disable=SC2086
  if [ -v "kernel_flags[$1]" ]; then $cxx "${exact[@]}" ${kernel_flags[$1]} ${CXXFLAGS:-} -c "$1.cpp" -o "$objects/$1.o"
  else $cxx "${flags[@]}" ${CXXFLAGS:-} -c "$1.cpp" -o "$objects/${1//\//_}.o"; fi
}
linked=() jobs=()
for source in tests/main tests/checks tests/products tests/rows tests/sampling tests/search tests/attention "${sources[@]}"; do
  if [ -n "$library" ] && [[ $source != tests/* ]]; then linked+=("$library/$source.cpp.o"); continue; fi
  compile "$source" & jobs+=($!)
  linked+=("$objects/${source//\//_}.o")
  if ((${#jobs[@]} >= $(nproc))); then wait "${jobs[0]}"; jobs=("${jobs[@]:1}"); fi
done
for job in "${jobs[@]}"; do wait "$job"; done
# shellcheck disable=SC2086
$cxx ${CXXFLAGS:-} -pthread "${linked[@]}" -o "$out"
