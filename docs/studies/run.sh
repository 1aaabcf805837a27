#!/usr/bin/env bash
# Runs a study: campaign, benchmark on the sealed test part, report.
#   docs/studies/run.sh cortex-subset /folder/of/the/h5ad/files
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
study=$here/$1
data=$(sed -n 's/^data: {path: \([^,]*\),.*/\1/p' "$study/campaign.yaml")
autotune launch "$study/campaign.yaml" --set "data.path=$2/$data" --slots-per-device 2
autotune benchmark "$1" --seeds 5 --slots-per-device 2
autotune report "$1" --out "$study/report"
