#!/usr/bin/env bash
# 9. General SFT after RL -> $OUT/general. The settings are ours: those of Long-CoT SFT with one epoch and a tenth of the rate.
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
START="$(latest "$OUT/rl_general$SUFFIX")"
fine_tune "general$SUFFIX" "$START" "$GENERAL_TRAIN" --epochs 1 --optimizer.lr 3e-5 "$@"
