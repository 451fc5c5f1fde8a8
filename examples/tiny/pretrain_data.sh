#!/usr/bin/env bash
# Real text of this Python installation, a tokenizer of it (and of the problems of data.sh, where they are there), and corpora.
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
SFT=()
[ -f "$DATA/sft_train.jsonl" ] && SFT=(--sft "$DATA/sft_train.jsonl")
plain "$PYTHON" "$ROOT/tools/make_text_data.py" --out "$DATA" ${SFT[@]+"${SFT[@]}"}
for name in manual sources; do
  plain "$PYTHON" "$ROOT/tools/prepare_corpus.py" --input "$DATA/$name.jsonl" --field text --tokenizer "$TOKENIZER" \
    --out "$DATA/$name" --workers 2
done
