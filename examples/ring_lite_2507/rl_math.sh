#!/usr/bin/env bash
# 5. Reasoning RL, stage 1: math (67k), prompt and response within 24,576 tokens -> $OUT/rl_math
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
START="$(chosen "$OUT/sft")"
reinforce rl_math "$START" "$MATH_PROMPTS" "$STEPS_MATH" 24576 \
  --data.instruction "$BOXED" "$@"
