#!/usr/bin/env bash
# C3PO, or OBJECTIVE, from the chosen checkpoint, sampling in this process on the live weights.
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
START="$(bash "$(dirname "${BASH_SOURCE[0]}")/select.sh")"
reinforce "rl$SUFFIX" "$START" "$@"
