#!/usr/bin/env bash
# evaluate.sh [CHECKPOINT] [NAME]: pass@1 -> $OUT/NAME/result.json
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
CHECKPOINT="${1:-$(latest "$OUT/rl$SUFFIX")}"
launch megatron_ring.evaluate --checkpoint "$CHECKPOINT" --prompts "$EVALUATION" --tokenizer "$TOKENIZER" \
  --out "$OUT/${2:-evaluation$SUFFIX}" --seed "$SEED" --sampling.max-new-tokens "$MAX_NEW_TOKENS" "${LAYOUT[@]}" "${@:3}"
