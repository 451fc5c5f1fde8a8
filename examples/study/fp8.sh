#!/usr/bin/env bash
# C3PO that samples with experts in FP8, with and without a correction, against the policy's own weights, from the checkpoint
# that choose.sh trained -> $OUT/c3po, $OUT/page. Before or after c3po.sh: what both need is run once.
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
TUNED="$(latest "$OUT/pilot")"
study fp8 --out "$OUT/c3po" --tuned "$TUNED" "$@"
