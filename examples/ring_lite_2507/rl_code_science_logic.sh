#!/usr/bin/env bash
# 6. Reasoning RL, stage 2: code (32k), science (9.9k) and logic games (19k), within 32,768 tokens -> $OUT/rl_code_science_logic.
# Prompts hold their own instructions. Solutions run in bubblewrap on the machines that train.
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
START="$(latest "$OUT/rl_math$SUFFIX")"
reinforce rl_code_science_logic "$START" "$CODE_SCIENCE_LOGIC_PROMPTS" "$STEPS_CODE_SCIENCE_LOGIC" 32768 "$@"
