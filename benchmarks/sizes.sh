#!/usr/bin/env bash
# How large programs of C are that run model files: .text, .rodata, .data and what else is loaded, stripped, linked with
# --gc-sections against the static library of one instruction set without threads; the C library is shared.
#
#   make sizes
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Of each processor: its name, the prefix of its compiler, its instruction set, its toolchain file.
while read -r name prefix sets toolchain; do
  if ! command -v "${prefix}g++" >/dev/null; then
    printf '%-12s skipped: no %sg++ on PATH\n' "$name" "$prefix"
    continue
  fi
  build=build/sizes/$name
  options=(-DCMAKE_BUILD_TYPE=MinSizeRel "-DSPARSEINFER_INSTRUCTION_SETS=$sets" -DSPARSEINFER_THREADS=OFF
    -DSPARSEINFER_SHARED=OFF -DSPARSEINFER_TESTS=OFF -DSPARSEINFER_CUDA=OFF)
  [ "$toolchain" = - ] || options+=("-DCMAKE_TOOLCHAIN_FILE=cmake/$toolchain.cmake")
  command -v ccache >/dev/null && options+=(-DCMAKE_CXX_COMPILER_LAUNCHER=ccache)
  cmake -S . -B "$build" -G Ninja "${options[@]}" >/dev/null
  cmake --build "$build" --target sparseinfer-run >/dev/null
  cp "$build/sparseinfer-run" "$build/runner"
  "${prefix}gcc" -Os -ffunction-sections -Icsrc/include examples/edge/classify.c "$build/lib/libsparseinfer.a" -lm \
    -Wl,--gc-sections -o "$build/classify"
  for program in classify runner; do
    "${prefix}strip" "$build/$program"
    "${prefix}size" "$build/$program" | awk -v name="$name" -v program="$program" -v sets="$sets" \
      'NR == 2 { printf "%-12s %-9s %-5s %8d bytes loaded (text %d, data %d), bss %d\n", name, program, sets, $1 + $2, $1, $2, $3 }'
  done
done <<'END'
aarch64 aarch64-linux-gnu- neon aarch64-linux-gnu
armv7 arm-linux-gnueabihf- NONE arm-linux-gnueabihf
riscv64 riscv64-linux-gnu- NONE riscv64-linux-gnu
x86_64 x86_64-linux-gnu- avx2 -
x86_64-c x86_64-linux-gnu- NONE -
END
printf '%s, %s\n' "$(gcc --version | head -1)" "$(date -u +%Y-%m-%d)"
