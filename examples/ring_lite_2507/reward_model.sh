#!/usr/bin/env bash
# 7. A scalar reward model from the SFT checkpoint, for general RL -> $OUT/reward_model. START: another checkpoint or folder.
NODES="${NODES:-4}"  # 32 packed sequences of 8,192 tokens a step: about 130 pairs of 2,000 tokens
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
start="${START:-$(chosen "$OUT/sft")}"
launch megatron_ring.reward --run-dir "$OUT/reward_model" --init-from "$start" --seed "$SEED" \
  --data.train "$PREFERENCES" --data.validation "$PREFERENCES_VALIDATION" --data.tokenizer "$TOKENIZER" \
  --data.context-length 8192 --data.global-batch 32 --data.overlong drop --epochs 1 \
  --optimizer.lr 2e-6 --router.balance 1e-5 --router.z 1e-7 \
  "${LAYOUT[@]}" --recompute "$RECOMPUTE" "$@"
