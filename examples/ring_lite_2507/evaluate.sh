#!/usr/bin/env bash
# 10. evaluate.sh [CHECKPOINT] [NAME]: the post's suite by its protocol, from files in $BENCHMARKS -> $OUT/NAME/result.json. For
# the sets that a language model judges add --judge flags (docs/evaluation.md).
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
CHECKPOINT="${1:-$(latest "$OUT/general$SUFFIX")}"
launch megatron_ring.evaluate --checkpoint "$CHECKPOINT" --suite ring-lite-2507 --benchmark-dir "$BENCHMARKS" \
  --tokenizer "$TOKENIZER" --out "$OUT/${2:-evaluation$SUFFIX}" --seed "$SEED" \
  --sampling.max-new-tokens "${MAX_NEW_TOKENS:-$((32768 - PROMPT_TOKENS))}" "${LAYOUT[@]}" "${@:3}"
