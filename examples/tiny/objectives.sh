#!/usr/bin/env bash
# Every objective from the same chosen SFT checkpoint, each in a run directory of its own: rl-c3po, rl-grpo, …
# OBJECTIVES="c3po gspo" STEPS=90 examples/tiny/objectives.sh
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
START="$(bash "$(dirname "${BASH_SOURCE[0]}")/select.sh")"
for objective in ${OBJECTIVES:-c3po grpo dapo dr-grpo gspo}; do
  # A token budget belongs to C3PO alone; the others train on all responses that they keep.
  budget=()
  [ "$objective" = c3po ] && budget=(--budget.tokens 6144 --budget.scope global)
  reinforce "rl-$objective" "$START" --objective.name "$objective" ${budget[@]+"${budget[@]}"} "$@"
done
