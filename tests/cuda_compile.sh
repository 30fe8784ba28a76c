#!/usr/bin/env bash
# Compiles every CUDA kernel with NVIDIA's own compiler for three architectures and prints what each kernel uses.
# Needs no GPU and no CUDA toolkit: NVRTC comes from PyPI.
#
#     tests/cuda_compile.sh
set -euo pipefail
cd "$(dirname "$0")/.."

python=$(tests/python_environment.sh nvidia-cuda-nvrtc==13.5.37)
libraries=$("$python" -c 'import pathlib, sysconfig; print(*{str(p.parent) for p in pathlib.Path(sysconfig.get_path("purelib")).glob("nvidia/**/libnvrtc.so*")}, sep=":")')
LD_LIBRARY_PATH="$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" WATTLE_REQUIRE_NVRTC=1 \
    cargo test --quiet -p wattle-kernels --test cuda_compile -- --nocapture
