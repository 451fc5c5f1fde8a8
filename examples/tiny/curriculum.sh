#!/usr/bin/env bash
# From a raw dump to RL by a curriculum, on a CPU: rows in GSM8K's form are curated, the chosen SFT checkpoint says how often it
# solves each, and RL reads that. After sft.sh -> $OUT/curated, $OUT/rated, $OUT/rl-curriculum
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
HERE="$(dirname "${BASH_SOURCE[0]}")"
START="$(bash "$HERE/select.sh")"
RAW="$DATA/raw"
plain mkdir -p "$RAW"
plain cp "$HERE/curriculum.yaml" "$RAW/recipe.yaml"
plain cp "$HELDOUT" "$RAW/heldout.jsonl"
plain "$PYTHON" "$ROOT/tools/make_raw_data.py" --prompts "$PROMPTS" --heldout "$HELDOUT" --out "$RAW/gsm8k.jsonl"
plain "$PYTHON" -m megatron_ring.curate "$RAW/recipe.yaml" --out "$OUT/curated"
plain "$PYTHON" "$ROOT/tools/solve_rate.py" --prompts "$OUT/curated/kept.jsonl" --out "$OUT/rated" \
  --samples "${SAMPLES:-8}" -- --checkpoint "$START" --tokenizer "$TOKENIZER" --sampling.max-new-tokens "$MAX_NEW_TOKENS" \
  --sampling.top-p 1 --rewards.workers 1 --seed "$SEED"
PROMPTS="$OUT/rated/kept.jsonl"
STEPS="${STEPS:-20}"
reinforce rl-curriculum "$START" --data.max-solve-rate 0.99 --data.curriculum solve-rate "$@"
