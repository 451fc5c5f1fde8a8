#!/usr/bin/env bash
# Pretraining from random weights -> $OUT/pretrain. The report begins with a base model and says nothing of its pretraining: these
# settings are ours, and have not been run. The stable part of wsd has no end in advance: see docs/how-to/pretrain.md.
#   CORPORA="corpora/web:0.6 corpora/code:0.25 corpora/math:0.15" examples/ring_lite/pretrain.sh
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
read -r -a TRAIN <<< "${CORPORA:-$DATA/blend.yaml}"
launch megatron_ring.pretrain --run-dir "$OUT/pretrain" --preset "$PRESET" --seed "$SEED" --data.train "${TRAIN[@]}" \
  --data.tokenizer "$TOKENIZER" --data.sequence-length 4096 --data.global-batch 2048 \
  --data.ramp.start 256 --data.ramp.increment 256 --data.ramp.samples 1000000 --steps "${STEPS_PRETRAIN:-1000000}" \
  --save-every 2000 --keep-last 10 --validation-every 2000 \
  --optimizer.lr 4e-4 --optimizer.schedule wsd --optimizer.warmup-steps 2000 --optimizer.decay-steps 100000 \
  --optimizer.decay-shape sqrt --optimizer.min-lr 4e-6 --router.balance 1e-4 --router.z 1e-5 --router.bias-rate 1e-3 \
  --alarms.action skip --alarms.loss-rise 1 --alarms.grad-norm-factor 20 "${LAYOUT[@]}" --recompute "$RECOMPUTE" "$@"
