#!/usr/bin/env bash
# 11. export.sh [CHECKPOINT]: the model in the published layout, with the base's tokenizer and code -> $OUT/hf
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
CHECKPOINT="${1:-$(latest "$OUT/general$SUFFIX")}"
tool convert_hf.py export --checkpoint "$CHECKPOINT" --out "$OUT/hf$SUFFIX" --like "$HF" "${@:2}"
