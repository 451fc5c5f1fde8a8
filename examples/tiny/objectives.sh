#!/usr/bin/env bash
# Every objective from the same chosen SFT checkpoint, each in a run directory of its own: rl-c3po, rl-grpo, …
# OBJECTIVES="c3po gspo" STEPS=90 examples/tiny/objectives.sh
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
START="$(bash "$(dirname "${BASH_SOURCE[0]}")/select.sh")"
for OBJECTIVE in ${OBJECTIVES:-c3po grpo dapo dr-grpo gspo}; do
  reinforce "rl-$OBJECTIVE" "$START" "$@"
done
