#!/usr/bin/env bash
# evaluate.sh CHECKPOINT NAME: pass@1 at temperature 1 on the held-out problems -> $OUT/NAME/result.json
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
launch megatron_ring.evaluate --checkpoint "$1" --prompts "$DATA/heldout.jsonl" --tokenizer "$TOKENIZER" \
  --out "$OUT/$2" --seed "$SEED" --sampling.temperature 1 --sampling.top-p 1 \
  --sampling.max-new-tokens "$MAX_NEW_TOKENS" --rewards.workers 1
