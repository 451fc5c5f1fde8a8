#!/usr/bin/env bash
# 5. RL stage 2, code and science, within 32,768 tokens -> $OUT/rl_code_science. Prompts hold their own instructions: science
# wants its answer in \boxed{}, code a program. Solutions run in bubblewrap on the machines that train.
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
START="$(latest "$OUT/rl_math$SUFFIX")"
reinforce rl_code_science "$START" "$CODE_SCIENCE_PROMPTS" "$STEPS_CODE_SCIENCE" 32768 "$@"
