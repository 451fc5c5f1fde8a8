#!/usr/bin/env bash
# How many epochs of SFT before RL -> $OUT/epochs, $OUT/page
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
study epochs --tasks "$CHOSEN/tasks.json" "$@"
