#!/usr/bin/env bash
# The final policy in the published Hugging Face layout -> $OUT/hf
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
rm -rf "$OUT/hf"
"$PYTHON" "$ROOT/tools/convert_hf.py" export --checkpoint "$OUT/rl/checkpoints/$(cat "$OUT/rl/checkpoints/latest")" \
  --out "$OUT/hf" --tokenizer "$TOKENIZER" --dtype fp32
