#!/usr/bin/env bash
# Build the wheel of the last commit, install it into a fresh environment, and train and recommend outside the checkout.
#
#     scripts/test_wheel.sh [PYTHON]
#
# It takes about two minutes and 2 GB of disk, more if pip finds no CPU build of torch.
set -euo pipefail
checkout=$(cd "$(dirname "$0")/.." && pwd)
python=$(command -v "${1:-python3}")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
export OMP_WAIT_POLICY=PASSIVE HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1
unset PYTHONPATH

mkdir "$folder/source"
git -C "$checkout" archive HEAD | tar -xf - -C "$folder/source"
"$python" -m venv "$folder/environment"
"$folder/environment/bin/pip" wheel -q --no-deps -w "$folder" "$folder/source"
"$folder/environment/bin/pip" install -q torch==2.13.0 2>/dev/null || true
"$folder/environment/bin/pip" install -q "$folder"/*.whl
rm -r "$folder/source"
PATH="$folder/environment/bin:$PATH"
cd "$folder"

hf-bert4rec --help
hf-bert4rec train --data ml-latest-small --titles ml-latest-small --output_dir run --max_steps 3
hf-bert4rec recommend run/model --history 260 1196 1210 | tee recommended.txt
test "$(grep -c . recommended.txt)" -ge 14
python - <<'PYTHON'
import hf_bert4rec

assert "site-packages" in hf_bert4rec.__file__
recommended = hf_bert4rec.pipeline("run/model")([["260", "1196", "1210"], []], top_k=10)
assert [len(items) for items in recommended] == [10, 10]
assert all(row["title"] for items in recommended for row in items)
PYTHON
echo "The wheel works."
