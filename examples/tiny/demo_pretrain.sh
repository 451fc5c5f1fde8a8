#!/usr/bin/env bash
# Pretraining, SFT and C3PO in small, on a CPU: a base model of real text, then the pipeline of demo.sh from it.
# Stopped, it continues with the same command.
OBJECTIVE=c3po
OUT="${OUT:-runs/tiny-pretrain-seed${SEED:-1}}"
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
HERE="$(dirname "${BASH_SOURCE[0]}")"
export SEED OUT OBJECTIVE
say() { printf '\n== %s\n' "$*"; }

say "1/5 problems, text, tokenizer and corpora -> $DATA"
[ -f "$DATA/sft_train.jsonl" ] || bash "$HERE/data.sh"
[ -f "$DATA/sources.idx" ] || bash "$HERE/pretrain_data.sh"
say "2/5 pretraining -> $OUT/pretrain"
bash "$HERE/pretrain.sh"
say "3/5 supervised fine-tuning from it -> $OUT/sft"
INIT="$(latest "$OUT/pretrain")" EPOCHS="${EPOCHS:-6}" bash "$HERE/sft.sh"
say "4/5 reinforcement with C3PO -> $OUT/rl"
STEPS="${STEPS:-30}" bash "$HERE/rl.sh"
say "5/5 held-out problems -> $OUT/after"
bash "$HERE/evaluate.sh" "$(latest "$OUT/rl")" after
