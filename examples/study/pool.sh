#!/usr/bin/env bash
# Problems of all tasks that have worked solutions -> $POOL. The folder can be carried to a machine without reasoning-gym.
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
plain "$PYTHON" "$ROOT/tools/make_worked_gym_data.py" --out "$POOL" --seed 1 --train 20000 --validation 400 --rl 4800 \
  --heldout 1600 --guesses 0.3 "$@"
