#!/usr/bin/env bash
# Pretraining in small, on a CPU, and the pipeline of demo.sh from the base model: text, pretraining, what it writes, then
# SFT, choice by entropy, C3PO, evaluation, export, report. Stopped, it continues with the same command.
OUT="${OUT:-runs/tiny-pretrain-seed${SEED:-1}}"
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
HERE="$(dirname "${BASH_SOURCE[0]}")"
export SEED OUT
say() { printf '\n== %s\n' "$*"; }

say "base 1/3 problems, text, tokenizer and corpora -> $DATA"
[ -f "$DATA/heldout.jsonl" ] || bash "$HERE/data.sh"
[ -f "$DATA/sources.idx" ] || bash "$HERE/pretrain_data.sh"
say "base 2/3 pretraining -> $OUT/pretrain"
bash "$HERE/pretrain.sh"
BASE="$(latest "$OUT/pretrain")"
say "base 3/3 how the base model goes on with a text -> $OUT/written.jsonl"
bash "$HERE/write.sh" "$BASE"
INIT="$BASE" EPOCHS="${EPOCHS:-6}" bash "$HERE/demo.sh"
