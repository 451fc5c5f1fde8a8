#!/usr/bin/env bash
# Continued pretraining of the pretrained model, or of INIT, on long documents, with four times the context -> $OUT/continue. The
# settings are ours, and have not been run.
#   INIT=models/Ling-lite-1.5 LONG_CORPORA="corpora/books:0.5 corpora/repositories:0.5" examples/ring_lite/continue.sh
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
START="${INIT:-$(latest "$OUT/pretrain")}"
read -r -a TRAIN <<< "${LONG_CORPORA:-$DATA/long_blend.yaml}"
launch megatron_ring.pretrain --run-dir "$OUT/continue" --init-from "$START" --seed "$SEED" --data.train "${TRAIN[@]}" \
  --data.tokenizer "$TOKENIZER" --data.sequence-length 16384 --data.global-batch 512 --data.reset-at-document \
  --steps "${STEPS_CONTINUE:-10000}" --save-every 1000 --validation-every 1000 \
  --optimizer.lr 5e-5 --optimizer.schedule linear --optimizer.warmup-steps 200 --optimizer.min-lr 5e-7 \
  --router.balance 1e-4 --router.z 1e-5 --router.bias-rate 1e-3 "${LAYOUT[@]}" --recompute "$RECOMPUTE" "$@"
