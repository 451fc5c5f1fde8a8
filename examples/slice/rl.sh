#!/usr/bin/env bash
# C3PO, or OBJECTIVE, from the last checkpoint of SFT, 64 prompts x 16 samples a step -> $OUT/rl. On one GPU 42 of its GiB are
# optimizer and gradients: for long responses (MAX_NEW_TOKENS), `rl.sh --offload-optimizer` leaves them to the KV cache while
# sampling.
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
START="$(latest "$OUT/sft")"
train_policy rank --run-dir "$OUT/rl$SUFFIX" --init-from "$START" --seed "$SEED" --data.prompts "$RL_PROMPTS" \
  --data.tokenizer "$TOKENIZER" --steps "$STEPS" --save-every "$STEPS" \
  --prompts-per-step 64 --samples-per-prompt 16 --sampling.max-new-tokens "$MAX_NEW_TOKENS" --optimizer.lr 3e-6 \
  "${LAYOUT[@]}" "$@"
