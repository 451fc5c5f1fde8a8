#!/usr/bin/env bash
# 4. The checkpoint that RL starts from, by validation entropy -> $OUT/sft/selection.json
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
tool select_checkpoint.py --run "$OUT/sft" --entropy-low 0.3 --entropy-high 0.5 "$@"
