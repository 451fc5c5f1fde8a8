#!/usr/bin/env bash
# C3PO against GRPO, and from a start that was trained for too long -> $OUT/c3po, $OUT/page
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
study c3po "$@"
