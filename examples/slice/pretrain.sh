#!/usr/bin/env bash
# Pretraining from random weights, or from INIT, on corpora of your own -> $OUT/pretrain.
#   CORPORA="corpora/web:0.7 corpora/code:0.3" TOKENIZER=Ling-lite-1.5 examples/slice/pretrain.sh
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
read -r -a TRAIN <<< "${CORPORA:-$DATA/corpus}"
launch megatron_ring.pretrain --run-dir "$OUT/pretrain" "${START[@]}" --seed "$SEED" --data.train "${TRAIN[@]}" \
  --data.tokenizer "$TOKENIZER" --data.sequence-length 8192 --data.global-batch 8 --steps "${STEPS_PRETRAIN:-1000}" \
  --save-every 500 --validation-every 500 --optimizer.lr 3e-4 --optimizer.schedule wsd --optimizer.warmup-steps 50 \
  --router.balance 1e-3 --router.bias-rate 1e-3 "${LAYOUT[@]}" "$@"
