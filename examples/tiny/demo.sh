#!/usr/bin/env bash
# The whole pipeline in small, on a CPU: data, SFT, choice by entropy, C3PO, evaluation before and after, export, report.
# Stopped, it continues with the same command.
OBJECTIVE=c3po
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
HERE="$(dirname "${BASH_SOURCE[0]}")"
export SEED OUT OBJECTIVE
began=$(date +%s)
say() { printf '\n== %s\n' "$*"; }

say "1/7 problems and tokenizer -> $DATA"
[ -f "$TOKENIZER/tokenizer.json" ] || bash "$HERE/data.sh"
say "2/7 supervised fine-tuning -> $OUT/sft"
bash "$HERE/sft.sh"
say "3/7 choice of the checkpoint by entropy -> $OUT/sft/selection.json"
START="$(bash "$HERE/select.sh")"
echo "chosen: $START"
say "4/7 held-out problems before reinforcement -> $OUT/before"
[ -f "$OUT/before/result.json" ] || bash "$HERE/evaluate.sh" "$START" before
say "5/7 reinforcement with C3PO -> $OUT/rl"
bash "$HERE/rl.sh"
say "6/7 held-out problems after reinforcement -> $OUT/after"
FINAL="$(latest "$OUT/rl")"
bash "$HERE/evaluate.sh" "$FINAL" after
say "7/7 export -> $OUT/hf, report -> $OUT/report.html"
bash "$HERE/export.sh"
BEFORE_SFT=()
[ -z "${INIT:-}" ] || BEFORE_SFT=(--pretrain "$OUT/pretrain")
plain "$PYTHON" "$ROOT/tools/report.py" ${BEFORE_SFT[@]+"${BEFORE_SFT[@]}"} --sft "$OUT/sft" --rl "$OUT/rl" --before "$OUT/before" --after "$OUT/after" \
  --export "$OUT/hf" --out "$OUT" --title "Ring-tiny, seed $SEED"
printf '\npipeline: %d s\n' "$(($(date +%s) - began))"
