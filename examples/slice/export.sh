#!/usr/bin/env bash
# export.sh [CHECKPOINT]: the model in the published layout -> $OUT/hf
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
CHECKPOINT="${1:-$(latest "$OUT/rl$SUFFIX")}"
tool convert_hf.py export --checkpoint "$CHECKPOINT" --out "$OUT/hf$SUFFIX" --tokenizer "$TOKENIZER" "${@:2}"
