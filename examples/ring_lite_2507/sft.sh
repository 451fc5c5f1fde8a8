#!/usr/bin/env bash
# 3. Long-CoT SFT on the teacher's accepted responses, a checkpoint and its validation entropy after each epoch -> $OUT/sft
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
fine_tune sft "$OUT/start" "$SFT_TRAIN" --data.validation "$SFT_VALIDATION" "$@"
