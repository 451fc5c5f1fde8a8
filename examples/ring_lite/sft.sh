#!/usr/bin/env bash
# 2. Long-CoT SFT, a checkpoint and its validation entropy after each epoch -> $OUT/sft. The report studied EPOCHS=1 to 9.
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
fine_tune sft "$OUT/start" "$SFT_TRAIN" --data.validation "$SFT_VALIDATION" "$@"
