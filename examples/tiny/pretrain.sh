#!/usr/bin/env bash
# Pretraining in small, on a CPU, of real text (pretrain_data.sh) -> $OUT/pretrain
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
# shellcheck disable=SC2086
launch megatron_ring.pretrain --run-dir "$OUT/pretrain" --preset ring-tiny --seed "$SEED" \
  --data.train "$DATA/manual:1" "$DATA/sources:1" --data.tokenizer "$TOKENIZER" --data.split 98 1 1 \
  --data.sequence-length 256 --data.global-batch 16 --steps "${PRETRAIN_STEPS:-600}" --save-every 100 --validation-every 100 \
  --optimizer.lr 2e-3 --optimizer.schedule wsd --optimizer.warmup-steps 20 --router.balance 1e-2 --router.z 1e-4 "$@" $EXTRA
