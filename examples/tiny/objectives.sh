#!/usr/bin/env bash
# Every objective from the same chosen SFT checkpoint, each in a run directory of its own: rl-c3po, rl-grpo, …
# OBJECTIVES="c3po gspo" STEPS=90 examples/tiny/objectives.sh
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
START="$(bash "$(dirname "${BASH_SOURCE[0]}")/select.sh" 2>/dev/null)"
for objective in ${OBJECTIVES:-c3po grpo dapo dr-grpo gspo}; do
  # A token budget belongs to C3PO alone; the others train on all responses that they keep.
  budget=""
  [ "$objective" = c3po ] && budget="--budget.tokens 6144 --budget.scope global"
  # shellcheck disable=SC2086
  launch megatron_ring.rl --run-dir "$OUT/rl-$objective" --init-from "$START" --seed "$SEED" --objective.name "$objective" \
    --data.prompts "$DATA/rl_prompts.jsonl" --data.tokenizer "$TOKENIZER" --data.micro-batch-tokens 2048 \
    --steps "${STEPS:-90}" --prompts-per-step 24 --samples-per-prompt 16 $budget \
    --sampling.max-new-tokens "$MAX_NEW_TOKENS" --objective.kl-beta 0.05 \
    --optimizer.lr 2e-4 --optimizer.schedule cosine --optimizer.beta2 0.99 --router.balance 1e-2 --router.z 1e-4 \
    --rewards.workers 1
done
