#!/usr/bin/env bash
# Two stages of RL against all problems at once, from the checkpoint that choose.sh trained -> $OUT/stages, $OUT/page
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
TUNED="$(latest "$OUT/pilot")"
study stages --tuned "$TUNED" --tasks "$CHOSEN/tasks.json" "$@"
