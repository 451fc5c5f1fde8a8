#!/usr/bin/env bash
# A reward model in small, from the SFT checkpoint: preferences planted by a program, accuracy on held-out ones -> $OUT/reward
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
for part in train validation; do
  tool make_preferences.py --input "$DATA/sft_$part.jsonl" --out "$DATA/preferences_$part.jsonl" --seed "$SEED"
done
start="$(latest "$OUT/sft")"
# shellcheck disable=SC2086
launch megatron_ring.reward --run-dir "$OUT/reward" --init-from "$start" --seed "$SEED" \
  --data.train "$DATA/preferences_train.jsonl" --data.validation "$DATA/preferences_validation.jsonl" \
  --data.tokenizer "$TOKENIZER" --data.context-length 1024 --data.global-batch 2 --epochs "${EPOCHS:-1}" \
  --optimizer.lr 5e-4 --router.balance 1e-2 --router.z 1e-4 "$@" $EXTRA
