#!/usr/bin/env bash
# The same 20 SFT steps in fp32 by one process and under every layout of two: TP, EP, PP, DP. On GPUs (two are needed) or on a
# CPU over gloo. Prints the largest relative differences of the loss; exit status 1 above 1e-4.
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
[ -f "$TOKENIZER/tokenizer.json" ] || bash "$(dirname "${BASH_SOURCE[0]}")/data.sh"
runs="$OUT/layouts"
[ -n "$DRY_RUN" ] || rm -rf "$runs"

# train NAME PROCESSES FLAGS…
train() {
  local name="$1"
  GPUS="$2"
  shift 2
  launch megatron_ring.sft --run-dir "$runs/$name" --preset ring-tiny --precision fp32 --seed "$SEED" \
    --data.train "$DATA/sft_train.jsonl" --data.tokenizer "$TOKENIZER" --data.context-length 512 --data.global-batch 4 \
    --epochs 1 --max-steps 20 --optimizer.lr 1e-3 --router.balance 1e-2 --router.z 1e-4 "$@"
}

train one 1
train tp2 2 --parallel.tensor 2
train ep2 2 --parallel.expert 2
train pp2 2 --parallel.pipeline 2
train dp2 2
plain "$PYTHON" "$ROOT/tools/compare_runs.py" "$runs"/{one,tp2,ep2,pp2,dp2} --tolerance 1e-4
