#!/usr/bin/env bash
# Runs a small scVI campaign: on simulated cells, or on the .h5ad file in DATA. Called by `make demo`.
set -euo pipefail
cd "$(dirname "$0")/.."
export AUTOTUNE_HOME=${AUTOTUNE_DEMO_HOME:?}
mkdir -p "$AUTOTUNE_HOME"
autotune=${BIN:?}/autotune

if [ -z "${DATA:-}" ]; then
    DATA=$AUTOTUNE_HOME/cells.h5ad
    [ -f "$DATA" ] || "$autotune" data simulate "$DATA" --cells 1000 --genes 400
fi
# Each run is a campaign of its own, so that a second demo runs again.
name=demo-$(date +%Y%m%d-%H%M%S)
echo "autotune launch examples/demo.yaml --workers 2 --set name=$name --set data.path=$DATA"
"$autotune" launch examples/demo.yaml --workers 2 --out "$AUTOTUNE_HOME/$name" --set "name=$name" --set "data.path=$DATA"
"$autotune" store down >/dev/null
cat <<END

The tables are in $AUTOTUNE_HOME/$name. Ask more of this campaign:
  export AUTOTUNE_HOME=$AUTOTUNE_HOME
  $autotune trials $name --sort marginal_ll
  $autotune show $name 0
END
