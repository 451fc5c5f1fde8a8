#!/usr/bin/env bash
# Two stages of RL against all problems at once -> $OUT/stages, $OUT/page
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
study stages "$@"
