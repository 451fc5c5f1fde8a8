#!/usr/bin/env bash
# Long-CoT SFT in small: a checkpoint and its validation entropy after each epoch. From random weights, or from INIT.
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
if [ -n "${INIT:-}" ]; then START=(--init-from "$INIT"); else START=(--preset ring-tiny); fi
# shellcheck disable=SC2086
launch megatron_ring.sft --run-dir "$OUT/sft" "${START[@]}" --seed "$SEED" \
  --data.train "$SFT_TRAIN" --data.validation "$DATA/sft_validation.jsonl" --data.tokenizer "$TOKENIZER" \
  --data.context-length 512 --data.global-batch 1 --epochs "${EPOCHS:-12}" \
  --optimizer.lr 1e-3 --router.balance 1e-2 --router.z 1e-4 "$@" $EXTRA
