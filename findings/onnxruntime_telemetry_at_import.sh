#!/usr/bin/env bash
# Expected by most: importing onnxruntime on Linux writes no files and sends nothing; its telemetry was one of Windows, and
#   its documents said so for years. A library that must not report is told so by `disable_telemetry_events()`.
# What happens: since 1.29 the packages for Linux and macOS report too, by default. `import onnxruntime` alone makes a device
#   identifier and a database of events in the cache folder of the user, and the first event is in it before any function
#   can be called, so `disable_telemetry_events()` comes too late for it. Only ORT_DISABLE_TELEMETRY=1 in the environment,
#   before the import, leaves nothing. Where CI is set in the environment it is off, so a pipeline does not show it.
# Where it matters: services with texts or model names that must not leave the house, read-only or shared home folders,
#   firewalls; whoever upgrades onnxruntime from 1.28.
# Source: measured here; microsoft/onnxruntime, pull request 27379. The script runs without a network as well; with one the
#   first case may send the event of its import.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "onnxruntime==1.32.0" "numpy==2.4.6" 2>/dev/null

files() { (cd "$1" && find . -type f -not -name "*.db-*" | sort | tr '\n' ' '); }

mkdir "$folder/plain" "$folder/late" "$folder/off"
python="$folder/venv/bin/python"
env -u CI HOME="$folder/plain" "$python" -c "import onnxruntime; print('onnxruntime', onnxruntime.__version__)"
env -u CI HOME="$folder/late" "$python" -c "import onnxruntime; onnxruntime.disable_telemetry_events()"
env -u CI HOME="$folder/off" ORT_DISABLE_TELEMETRY=1 "$python" -c "import onnxruntime"
for case in plain late off; do echo "$case: files in the home folder: $(files "$folder/$case")"; done
[ "$(files "$folder/plain")" = "./.cache/Microsoft/DeveloperTools/.onnxruntime/deviceid ./.cache/Microsoft/DeveloperTools/.onnxruntime/onnxruntime.db " ]
[ "$(files "$folder/late")" = "$(files "$folder/plain")" ]
[ -z "$(files "$folder/off")" ]
echo "as described"
