# How launchers start things; sourced by the env.sh of every folder, which has said NODES, GPUS, PYTHON and PRESET before.
#
# Any launcher takes `--dry-run`: it checks its whole configuration, prints layout, tokens and memory of a GPU, and starts
# nothing; no GPU is needed. More flags for the main go behind the launcher's own arguments.
set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
DRY_RUN="${DRY_RUN:-}"
ARGUMENTS=()
for argument in "$@"; do
  if [ "$argument" = --dry-run ]; then DRY_RUN=1; else ARGUMENTS+=("$argument"); fi
done
set -- ${ARGUMENTS[@]+"${ARGUMENTS[@]}"}
export DRY_RUN
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"

NODE_RANK="${NODE_RANK:-0}"             # of this machine; slurm.sh sets these three
MASTER_ADDR="${MASTER_ADDR:-localhost}" # of the first machine
MASTER_PORT="${MASTER_PORT:-29500}"

# launch MODULE FLAGS…: one process here, or torchrun with $GPUS processes on each of $NODES machines
launch() {
  local module="$1"
  shift
  if [ -n "$DRY_RUN" ]; then
    "$PYTHON" -m "$module" "$@" --dry-run --plan.world "$((NODES * GPUS))" --plan.preset "$PRESET"
  elif [ "$NODES" -gt 1 ]; then
    "$PYTHON" -m torch.distributed.run --nnodes "$NODES" --node-rank "$NODE_RANK" --master-addr "$MASTER_ADDR" --master-port "$MASTER_PORT" \
      --nproc-per-node "$GPUS" -m "$module" "$@"
  elif [ "$GPUS" -gt 1 ]; then
    "$PYTHON" -m torch.distributed.run --standalone --nproc-per-node "$GPUS" -m "$module" "$@"
  else
    "$PYTHON" -m "$module" "$@"
  fi
}

# tool NAME FLAGS…: a script of tools/ that knows --dry-run; on the first machine alone
tool() {
  local name="$1"
  shift
  [ "$NODE_RANK" = 0 ] || return 0
  "$PYTHON" "$ROOT/tools/$name" "$@" ${DRY_RUN:+--dry-run}
}

# plain COMMAND…: what has no configuration to check
plain() {
  [ "$NODE_RANK" = 0 ] || return 0
  if [ -n "$DRY_RUN" ]; then echo "dry run: would run $*"; else "$@"; fi
}

# latest RUN: the last checkpoint of a run directory
latest() {
  if [ -f "$1/checkpoints/latest" ]; then
    echo "$1/checkpoints/$(cat "$1/checkpoints/latest")"
  elif [ -n "$DRY_RUN" ]; then
    echo "$1/checkpoints/step_N"
  else
    echo "error: $1 has no checkpoint yet: run the stage before this one" >&2
    return 2
  fi
}

# chosen RUN: the checkpoint that select.sh chose
chosen() {
  if [ -f "$1/selection.json" ]; then
    echo "$1/checkpoints/$("$PYTHON" -c 'import json, sys; print(json.load(open(sys.argv[1]))["checkpoint"])' "$1/selection.json")"
  elif [ -n "$DRY_RUN" ]; then
    echo "$1/checkpoints/step_N"
  else
    echo "error: $1 has no selection.json yet: run select.sh" >&2
    return 2
  fi
}
