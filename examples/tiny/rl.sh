#!/usr/bin/env bash
# C3PO from the chosen checkpoint, sampling in this process on the live weights.
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
START="$(bash "$(dirname "${BASH_SOURCE[0]}")/select.sh" 2>/dev/null)"
launch megatron_ring.rl --run-dir "$OUT/rl" --init-from "$START" --seed "$SEED" \
  --data.prompts "$DATA/rl_prompts.jsonl" --data.tokenizer "$TOKENIZER" --data.micro-batch-tokens 2048 \
  --steps "${STEPS:-90}" --prompts-per-step 24 --samples-per-prompt 16 --budget.tokens 6144 --budget.scope global \
  --sampling.max-new-tokens "$MAX_NEW_TOKENS" --objective.kl-beta 0.05 \
  --optimizer.lr 2e-4 --optimizer.schedule cosine --optimizer.beta2 0.99 --router.balance 1e-2 --router.z 1e-4 \
  --rewards.workers 1
