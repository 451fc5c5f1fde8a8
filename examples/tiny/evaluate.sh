#!/usr/bin/env bash
# evaluate.sh [CHECKPOINT] [NAME]: pass@1 at temperature 1 on the held-out problems -> $OUT/NAME/result.json
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
CHECKPOINT="${1:-$(latest "$OUT/rl$SUFFIX")}"
# shellcheck disable=SC2086
launch megatron_ring.evaluate --checkpoint "$CHECKPOINT" --prompts "$HELDOUT" --tokenizer "$TOKENIZER" \
  --out "$OUT/${2:-after$SUFFIX}" --seed "$SEED" --sampling.temperature 1 --sampling.top-p 1 \
  --sampling.max-new-tokens "$MAX_NEW_TOKENS" --rewards.workers 1 "${@:3}" $EXTRA
