#!/usr/bin/env bash
# Prints the path of a Python that has the given packages from PyPI, in a virtual environment that is kept between runs.
# Installs Debian's python3-venv where there is none.
#
#     tests/python_environment.sh PACKAGE==VERSION...
set -euo pipefail

environment="${XDG_CACHE_HOME:-$HOME/.cache}/wattle/python-$(printf '%s\n' "$@" | sha256sum | cut -c1-12)"
if ! [ -e "$environment/complete" ]; then
    rm -rf "$environment"
    if ! python3 -m venv "$environment" >&2; then
        { apt-get update && apt-get install -y --no-install-recommends python3 python3-venv; } >&2
        rm -rf "$environment"
        python3 -m venv "$environment" >&2
    fi
    "$environment/bin/python" -m pip install --quiet --disable-pip-version-check "$@" >&2
    touch "$environment/complete"
fi
printf '%s\n' "$environment/bin/python"
