#!/usr/bin/env bash
# Compares this program with Hugging Face transformers and TensorBoard, live: fresh random models of every family, and a
# model that was trained here.
#
#     tests/interop.sh [RUN]      RUN: a finished training run; without one a short one is made
set -euo pipefail
cd "$(dirname "$0")/.."

python=$(tests/python_environment.sh torch==2.15.0 transformers==5.23.0 safetensors==0.8.0 tensorboard==2.21.0)

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
