#!/usr/bin/env bash
# 2. The published base model as a checkpoint that every layout reads -> $OUT/start
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
tool convert_hf.py import --hf "$HF" --out "$OUT/start" "$@"
