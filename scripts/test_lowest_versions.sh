#!/usr/bin/env bash
# Run the tests with the lowest versions that pyproject.toml allows, in a temporary environment.
#
#     scripts/test_lowest_versions.sh [PYTHON [pytest option …]]
#     scripts/test_lowest_versions.sh python3.11 tests/models
#
# torch of that version is usually a CUDA build: this takes about 8 GB of disk, and 10 minutes more than the tests.
# PYTHON must be 3.11 or 3.12; newer ones have no packages of the lowest versions.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
export OMP_WAIT_POLICY=PASSIVE HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1

"${1:-python3}" -m venv "$folder"
"$folder/bin/python" -m pip install -q uv
"$folder/bin/uv" pip install -q --python "$folder/bin/python" --resolution lowest-direct -e ".[test]"
"$folder/bin/uv" pip list --python "$folder/bin/python"
"$folder/bin/python" -m pytest "${@:2}"
