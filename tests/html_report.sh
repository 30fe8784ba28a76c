#!/usr/bin/env bash
# Makes the HTML report of a real run and opens it in a real browser: tests/html_report.sh [RUN]
#
# RUN is a run directory; without one, a short run of configs/quickstart.toml is trained first. The page is opened
# 400 and 1400 px wide, light and dark; html_page.py says what is checked. Screenshots stay in a temporary folder,
# whose name is printed last. Needs Python 3; installs Debian's chromium where it is missing, which needs root.
set -euo pipefail
cd "$(dirname "$0")/.."

if ! command -v chromium >/dev/null; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core >/dev/null
fi

folder=$(mktemp -d)
run=${1:-}
if [ -z "$run" ]; then
    run=$(cargo run --release -- train configs/quickstart.toml --set run.max_tokens=40960 --set data.max_bytes=4000000 \
        --run-dir "$folder/quickstart")
fi

# A second run to compare with: the same under another name.
mkdir "$folder/other"
python3 - "$run/ledger.sqlite" "$folder/other/ledger.sqlite" <<'PYTHON'
import sqlite3
import sys

source, copy = sqlite3.connect(sys.argv[1]), sqlite3.connect(sys.argv[2])
source.backup(copy)
copy.execute("UPDATE run SET uid = uid || '-other', run_id = run_id || '-other'")
copy.execute("UPDATE segment SET uid = uid || '-other'")
copy.commit()
PYTHON

cargo run --release -- report "$run" --format html --output "$folder/one.html"
cargo run --release -- report "$run" "$folder/other" --location FRA --format html --output "$folder/two.html"
for page in one two; do
    bytes=$(wc -c <"$folder/$page.html")
    if [ "$bytes" -ge 2000000 ]; then
        echo "$page.html has $bytes bytes, at most 2 MB are allowed" >&2
        exit 1
    fi
done
python3 tests/html_page.py "$folder/screenshots" "$folder/one.html" "$folder/two.html"
echo "$folder/screenshots"
