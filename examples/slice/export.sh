#!/usr/bin/env bash
# export.sh [CHECKPOINT]: the model in the published layout -> $OUT/hf
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
CHECKPOINT="${1:-$(latest "$OUT/rl")}"
tool convert_hf.py export --checkpoint "$CHECKPOINT" --out "$OUT/hf" --tokenizer "$TOKENIZER" "${@:2}"
