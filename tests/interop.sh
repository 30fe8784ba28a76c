#!/usr/bin/env bash
# Compares this program with Hugging Face transformers and TensorBoard, live: fresh random models of every family, and a
# model that was trained here. Installs both from PyPI into a virtual environment that is kept between runs.
#
#     tests/interop.sh [RUN]      RUN: a finished training run; without one a short one is made
set -euo pipefail
cd "$(dirname "$0")/.."

PACKAGES=(torch==2.15.0 transformers==5.23.0 safetensors==0.8.0 tensorboard==2.21.0)
environment="${XDG_CACHE_HOME:-$HOME/.cache}/wattle/interop-$(printf '%s\n' "${PACKAGES[@]}" | sha256sum | cut -c1-12)"
python="$environment/bin/python"
if ! [ -e "$environment/complete" ]; then
    rm -rf "$environment"
    python3 -m venv "$environment"
    "$python" -m pip install --quiet --disable-pip-version-check "${PACKAGES[@]}"
    touch "$environment/complete"
fi

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cargo build --release --quiet -p wattle-engine
wattle=target/release/wattle
run="${1:-}"
if [ -z "$run" ]; then
    run=$("$wattle" train configs/quickstart.toml --quiet --set run.max_tokens=40960 --set data.max_bytes=4000000 \
        --run-dir "$scratch/run")
fi

export HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error TRANSFORMERS_NO_ADVISORY_WARNINGS=1
"$python" tests/interop/make_models.py "$scratch/models"
"$python" tests/interop/compare.py "$wattle" "$scratch/models" "$run"
# Training, on the models that were just made.
WATTLE_INTEROP_MODELS="$scratch/models" cargo test --quiet -p wattle-tests --test interop
