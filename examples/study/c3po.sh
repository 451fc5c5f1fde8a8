#!/usr/bin/env bash
# C3PO against GRPO, with as many prompts and with about as many tokens, from the checkpoint that choose.sh trained
# -> $OUT/c3po, $OUT/page
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
TUNED="$(latest "$OUT/pilot")"
study c3po --settings c3po grpo grpo-fewer --tuned "$TUNED" "$@"
