#!/usr/bin/env bash
# MIntRec2.0 from the downloaded folder to results and explanations: the steps, settings and resuming of data/mintrec/recipe.sh.
#   data/mintrec2/recipe.sh DATA [LLAMA]      DATA: the release (its in-scope/ is taken), or the folder of train.tsv
set -euo pipefail
DATA=${1:?usage: $0 DATA [LLAMA]}
[ ! -d "$DATA/in-scope" ] || DATA=$DATA/in-scope
export OUT=${OUT:-runs/mintrec2} PROBE_SEEDS=${PROBE_SEEDS:-0 1 2 3 4}
exec bash "$(dirname "$0")/../mintrec/recipe.sh" "$DATA" "${@:2}"
