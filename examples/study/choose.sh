#!/usr/bin/env bash
# Which tasks the start solves sometimes: SFT of one epoch on all tasks -> $OUT/pilot, solve rates of the RL prompts ->
# $OUT/rated, tasks with a rate of 0.1 to 0.7 -> $CHOSEN. More flags are those of tools/choose_tasks.py.
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
plain "$PYTHON" "$ROOT/tools/draw_worked_gym_data.py" --pool "$POOL" --seed 0 --train "${ROWS:-8000}" --validation 200 \
  --rl "${RATED:-4800}" --heldout 1 --out "$OUT/pilot-data"
plain "$PYTHON" -m megatron_ring.sft --run-dir "$OUT/pilot" --init-from "$START" --seed 0 \
  --data.train "$OUT/pilot-data/sft_train.jsonl" --data.validation "$OUT/pilot-data/sft_validation.jsonl" \
  --data.tokenizer "$START" --data.context-length 4096 --data.global-batch "${BATCH:-2}" --epochs 1 --optimizer.lr 3e-4 \
  --router.balance 1e-3 --no-async-save --no-save-optimizer
plain "$PYTHON" "$ROOT/tools/solve_rate.py" --prompts "$OUT/pilot-data/rl_prompts.jsonl" --out "$OUT/rated" \
  --samples "${SAMPLES:-8}" -- --checkpoint "$(latest "$OUT/pilot")" --tokenizer "$START" \
  --sampling.temperature 1 --sampling.top-p 1 --sampling.max-new-tokens "${LONGEST:-256}" --rewards.workers 8
plain "$PYTHON" "$ROOT/tools/choose_tasks.py" --pool "$POOL" --rated "$OUT/rated/kept.jsonl" --out "$CHOSEN" "$@"
