#!/usr/bin/env bash
# The pipeline of Ring-lite-2507 in small, on a CPU: curation, SFT, choice by entropy, reasoning RL, a reward model, general RL with
# rules, the reward model and a replay share of reasoning, general SFT, evaluations, export. Stopped, it continues with the
# same command. PROBLEMS, TASKS, PAIRS, EPOCHS, REASONING_STEPS and GENERAL_STEPS are its sizes.
OBJECTIVE=c3po
OUT="${OUT:-runs/tiny-2507-seed${SEED:-1}}"
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
HERE="$(dirname "${BASH_SOURCE[0]}")"
PROBLEMS="${PROBLEMS:-1800}" TASKS="${TASKS:-700}" PAIRS="${PAIRS:-3200}" RL_TASKS="${RL_TASKS:-600}"
HELDOUT_TASKS="${HELDOUT_TASKS:-300}" EPOCHS="${EPOCHS:-8}"
TOKENIZER="$DATA/general_tokenizer" SFT_TRAIN="$DATA/general_sft_train.jsonl" HELDOUT="$DATA/general_heldout_all.jsonl"
PROMPTS="$DATA/curated/kept.jsonl"
export SEED OUT OBJECTIVE EPOCHS TOKENIZER SFT_TRAIN HELDOUT PROMPTS
began=$(date +%s)
say() { printf '\n== %s\n' "$*"; }

# judged CHECKPOINT NAME: both kinds of held-out tasks, the open ones with the reward model -> $OUT/NAME/general.json
judged() {
  [ -f "$OUT/$2/general.json" ] && return
  bash "$HERE/evaluate.sh" "$1" "$2" --rewards.reward-model "$REWARD" --samples-per-problem "${SAMPLES:-4}"
  plain "$PYTHON" "$ROOT/tools/general_result.py" --evaluation "$OUT/$2" --prompts "$HELDOUT"
}

say "1/10 problems of reasoning -> $DATA"
[ -f "$DATA/heldout.jsonl" ] || plain "$PYTHON" "$ROOT/tools/make_tiny_data.py" --out "$DATA" --seed "$SEED" \
  --train "$PROBLEMS" --validation $((PROBLEMS / 20 + 20)) --rl "$RL_TASKS" --heldout "$HELDOUT_TASKS" --guesses 0.4 \
  --families linear --difficulty linear.solution=9 linear.constant=60
say "2/10 curation -> $DATA/curated"
plain cp "$HERE/curate.yaml" "$DATA/curate.yaml"
plain "$PYTHON" -m megatron_ring.curate "$DATA/curate.yaml" --out "$DATA/curated"
[ -f "$DATA/general_replay.json" ] || plain "$PYTHON" "$ROOT/tools/make_general_data.py" --data "$DATA" --seed "$SEED" \
  --reasoning curated/kept.jsonl --train "$TASKS" --pairs "$PAIRS" --rl "$RL_TASKS" --heldout "$HELDOUT_TASKS"
say "3/10 supervised fine-tuning -> $OUT/sft"
bash "$HERE/sft.sh"
say "4/10 choice of the checkpoint by entropy -> $OUT/sft/selection.json"
START="$(bash "$HERE/select.sh")"
echo "chosen: $START"
say "5/10 reasoning RL -> $OUT/reasoning"
reinforce reasoning "$START" --steps "${REASONING_STEPS:-20}" --optimizer.schedule constant
REASONING="$(latest "$OUT/reasoning")"
say "6/10 reward model -> $OUT/reward"
# shellcheck disable=SC2086
launch megatron_ring.reward --run-dir "$OUT/reward" --init-from "$START" --seed "$SEED" \
  --data.train "$DATA/general_preferences_train.jsonl" --data.validation "$DATA/general_preferences_validation.jsonl" \
  --data.tokenizer "$TOKENIZER" --data.context-length 512 --data.global-batch 1 --epochs 1 --optimizer.lr 5e-4 \
  --router.balance 1e-2 --router.z 1e-4 $EXTRA
REWARD="$(latest "$OUT/reward")"
say "7/10 held-out tasks before general RL -> $OUT/before"
judged "$REASONING" before
say "8/10 general RL -> $OUT/general-rl"
reinforce general-rl "$REASONING" --data.prompts "$DATA/general_replay.json" --rewards.reward-model "$REWARD" \
  --steps "${GENERAL_STEPS:-30}" --objective.kl-beta 0.02 --optimizer.schedule constant
GENERAL="$(latest "$OUT/general-rl")"
judged "$GENERAL" after-rl
say "9/10 general SFT -> $OUT/general"
# shellcheck disable=SC2086
launch megatron_ring.sft --run-dir "$OUT/general" --init-from "$GENERAL" --seed "$SEED" --data.train "$DATA/general_sft_last.jsonl" \
  --data.tokenizer "$TOKENIZER" --data.context-length 512 --data.global-batch 2 --epochs 1 --optimizer.lr 1e-4 \
  --router.z 1e-4 --router.balance 1e-2 $EXTRA
FINAL="$(latest "$OUT/general")"
judged "$FINAL" after
say "10/10 export -> $OUT/hf"
[ -n "$DRY_RUN" ] || rm -rf "$OUT/hf"
tool convert_hf.py export --checkpoint "$FINAL" --out "$OUT/hf" --tokenizer "$TOKENIZER" --dtype fp32
printf '\npipeline: %d s\n' "$(($(date +%s) - began))"
