#!/usr/bin/env bash
# 7. evaluate.sh [CHECKPOINT] [NAME]: pass@1, zero-shot, temperature 1 and top-p 0.95 -> $OUT/NAME/result.json.
# The report draws up to 32,768 tokens; a model of 32,768 positions holds prompt and response together.
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
CHECKPOINT="${1:-$(latest "$OUT/general$SUFFIX")}"
launch megatron_ring.evaluate --checkpoint "$CHECKPOINT" --prompts "$EVALUATION" --tokenizer "$TOKENIZER" \
  --out "$OUT/${2:-evaluation$SUFFIX}" --seed "$SEED" --instruction "${INSTRUCTION-$BOXED}" --samples-per-problem "${SAMPLES:-16}" \
  --sampling.temperature 1 --sampling.top-p 0.95 --sampling.max-new-tokens "${MAX_NEW_TOKENS:-$((32768 - PROMPT_TOKENS))}" \
  "${LAYOUT[@]}" "${@:3}"
