#!/usr/bin/env bash
# Reads a run's emissions.csv back with pandas, as people who use CodeCarbon's files do.
#
#     tests/emissions_csv.sh RUN
set -euo pipefail
cd "$(dirname "$0")/.."

python=$(tests/python_environment.sh pandas==3.1.1)

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
wattle="${WATTLE:-target/release/wattle}"
for _ in 1 2; do
    # The second time the row is appended.
    "$wattle" report "$1" --format csv --output "$scratch/emissions.csv"
done
"$wattle" report "$1" --format json --output "$scratch/report.json"
"$python" - "$scratch" <<'PYTHON'
import json
import sys
from pathlib import Path

import pandas

scratch = Path(sys.argv[1])
rows = pandas.read_csv(scratch / "emissions.csv")
total = json.loads((scratch / "report.json").read_text())["total"]
assert rows.shape == (2, 38), rows.shape
for _, row in rows.iterrows():
    parts = row[["cpu_energy", "gpu_energy", "ram_energy"]].astype(float)
    # A part without a sensor is empty, not 0.
    energy = parts.sum(skipna=True)
    assert abs(row["energy_consumed"] - energy) <= 1e-9 * energy, (row["energy_consumed"], energy)
    assert abs(row["energy_consumed"] * 3.6e6 - total["facility_energy_joules"]) <= 1e-6 * energy * 3.6e6
    assert abs(row["emissions"] * 1000 - total["emissions_grams_co2e"]) <= 1e-9
print("pandas reads", *rows.shape, "rows and columns that agree with the ledger")
PYTHON
"$wattle" report --lint "$scratch/emissions.csv"
