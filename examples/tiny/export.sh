#!/usr/bin/env bash
# The final policy in the published Hugging Face layout -> $OUT/hf
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
[ -n "$DRY_RUN" ] || rm -rf "$OUT/hf$SUFFIX"
FINAL="$(latest "$OUT/rl$SUFFIX")"
tool convert_hf.py export --checkpoint "$FINAL" --out "$OUT/hf$SUFFIX" --tokenizer "$TOKENIZER" --dtype fp32
