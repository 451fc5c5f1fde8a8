#!/usr/bin/env bash
# write.sh [CHECKPOINT] [NAME]: how a base model goes on with the texts of starts.jsonl, the likeliest token each time
# -> $OUT/NAME.jsonl
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
CHECKPOINT="${1:-$(latest "$OUT/pretrain")}"
plain "$PYTHON" -m megatron_ring.generate --checkpoint "$CHECKPOINT" --tokenizer "$TOKENIZER" --raw \
  --prompts "$ROOT/examples/tiny/starts.jsonl" --out "$OUT/${2:-written}.jsonl" \
  --sampling.temperature 0 --sampling.max-new-tokens "$MAX_NEW_TOKENS" "${@:3}"
