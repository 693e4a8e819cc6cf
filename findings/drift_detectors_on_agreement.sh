#!/usr/bin/env bash
# Expected by most: stream drift detectors of a well-known library, with their defaults, on "does the fast answer differ
#   from the slow one?", 0 or 1 a row: a constant rate raises next to no alarm, an alarm means that it has got worse, and
#   a growth from 2 % to 30 % is noticed.
# What happens: at a constant 2 %, DDM raises an alarm in 14 of 20 streams of 10,000 rows and EDDM in all 20. ADWIN and
#   PageHinkley raise none there, but do where the rate FALLS from 10 % to 2 %: they have two sides, and the alarm does
#   not say which. KSWIN misses the growth within 1,500 rows in most streams: it compares 30 rows with 30 others as
#   distributions, and zeros and ones hardly differ as such.
# Where it matters: a server that takes a cheaper model, a cascade's first stage or an early exit out of service by itself,
#   on an audited sample. A one-sided test by betting has a stated chance of a false alarm; none of these has.
# Source: measured here; the defaults of https://riverml.xyz/0.23.0/api/drift/
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "river==0.23.0" "numpy==2.1.3" typing_extensions 2>/dev/null
cat > "$folder/detectors.py" <<'PYTHON'
import random
from importlib.metadata import version

from river import drift

STREAMS = 20


def alarm(detector, rate, rows, draw):
    """Return whether the detector raises an alarm within so many rows of a rate."""
    for _ in range(rows):
        detector.update(int(draw.random() < rate))
        if detector.drift_detected:
            return True
    return False


def constant(make):
    return sum(alarm(make(), 0.02, 10_000, random.Random(seed)) for seed in range(STREAMS))


def changed(make, before, after, rows):
    count = 0
    for seed in range(100, 100 + STREAMS):
        detector, draw = make(), random.Random(seed)
        for _ in range(2_000):
            detector.update(int(draw.random() < before))
        count += alarm(detector, after, rows, draw)
    return count


print("river", version("river"))
counts = {
    "DDM, constant": constant(drift.binary.DDM),
    "EDDM, constant": constant(drift.binary.EDDM),
    "ADWIN, constant": constant(drift.ADWIN),
    "PageHinkley, constant": constant(drift.PageHinkley),
    "ADWIN, 10 % to 2 %": changed(drift.ADWIN, 0.10, 0.02, 5_000),
    "PageHinkley, 10 % to 2 %": changed(drift.PageHinkley, 0.10, 0.02, 5_000),
    "KSWIN, 2 % to 30 %": changed(lambda: drift.KSWIN(seed=1), 0.02, 0.30, 1_500),
}
for name, count in counts.items():
    print(f"{name}: an alarm in {count} of {STREAMS} streams")
assert counts["DDM, constant"] >= 10 and counts["EDDM, constant"] == STREAMS, counts
assert counts["ADWIN, constant"] == counts["PageHinkley, constant"] == 0, counts
assert counts["ADWIN, 10 % to 2 %"] == STREAMS and counts["PageHinkley, 10 % to 2 %"] >= 15, counts
assert counts["KSWIN, 2 % to 30 %"] <= 10, counts
print("as described")
PYTHON
"$folder/venv/bin/python" "$folder/detectors.py"
