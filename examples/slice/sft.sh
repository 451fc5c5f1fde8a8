#!/usr/bin/env bash
# SFT from random weights, or from INIT -> $OUT/sft
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
launch megatron_ring.sft --run-dir "$OUT/sft" "${START[@]}" --seed "$SEED" --data.train "$SFT_TRAIN" \
  --data.validation "$SFT_VALIDATION" --data.tokenizer "$TOKENIZER" --data.context-length 8192 --data.global-batch 2 \
  --epochs "${EPOCHS:-3}" --optimizer.lr 1e-4 "${LAYOUT[@]}" "$@"
