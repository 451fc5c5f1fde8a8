#!/usr/bin/env bash
# Generated problems and a tokenizer -> $DATA. Not needed with files of your own.
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
plain "$PYTHON" "$ROOT/tools/make_tiny_data.py" --out "$DATA" --seed "$SEED" --train 5600 --validation 200 --rl 1400 \
  --heldout 200 "$@"
