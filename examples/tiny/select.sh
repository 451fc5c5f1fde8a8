#!/usr/bin/env bash
# Choose the SFT checkpoint by entropy; prints its path.
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
tool select_checkpoint.py --run "$OUT/sft" \
  --entropy-low "$ENTROPY_LOW" --entropy-high "$ENTROPY_HIGH"
