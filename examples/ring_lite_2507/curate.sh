#!/usr/bin/env bash
# 1. curate.sh [NAME…]: raw files below $DATA/raw to rows for training, by the recipes of this folder -> $DATA/curated/NAME
# (math, code, science, long_cot); logic games of the generators -> $DATA/curated/logic.jsonl; stage files of RL -> $DATA.
# On one machine without GPUs. It goes on where it was stopped.
NODES="${NODES:-1}"
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
NAMES=("$@")
[ "$#" -gt 0 ] || NAMES=(math code science long_cot)
plain mkdir -p "$CURATED"
for name in "${NAMES[@]}"; do
  [ -f "$RECIPES/$name.yaml" ] || { echo "error: no recipe $name in $RECIPES" >&2; exit 2; }
  if [ -n "$DRY_RUN" ]; then
    echo "dry run: would curate $DATA/raw/$name by $RECIPES/$name.yaml -> $CURATED/$name"
  else
    cp "$RECIPES/$name.yaml" "$CURATED/$name.yaml" # files are looked for beside a recipe
    "$PYTHON" -m megatron_ring.curate "$CURATED/$name.yaml"
    ln -sf "$name/kept.jsonl" "$CURATED/$name.jsonl" # a stage file wants a name of its own for each file
  fi
done
[ -f "$CURATED/logic.jsonl" ] || plain "$PYTHON" "$ROOT/tools/make_logic_data.py" --out "$CURATED/logic.jsonl" --games all \
  --count 2800 --difficulty 1-5 --seed "$SEED" # 7 games: 19.6k
for name in rl_math rl_code_science_logic rl_general; do
  [ -f "$DATA/$name.yaml" ] || plain cp "$RECIPES/$name.yaml" "$DATA/$name.yaml"
done
