# How launchers start things; sourced by the env.sh of every folder, which has said NODES, GPUS, PYTHON and PRESET before.
#
# Any launcher takes `--dry-run`: it checks its whole configuration, prints layout, tokens and memory of a GPU, and starts
# nothing; no GPU is needed. More flags for the main go behind the launcher's own arguments.
#
# OBJECTIVE=grpo, before any launcher, is the same reinforcement under another objective: c3po (the default), grpo, dapo,
# dr-grpo or gspo. A token budget (BUDGET) belongs to c3po; the others train on all responses that they keep. Their runs and
# what comes after them have folders of their own: rl-grpo, evaluation-grpo, … Behind an RL launcher `--objective.name grpo` says
# the same.
set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
DRY_RUN="${DRY_RUN:-}"
OBJECTIVE="${OBJECTIVE:-c3po}"
ARGUMENTS=()
before=""
for argument in "$@"; do
  case "$before $argument" in
    "--objective.name "*) OBJECTIVE="$argument" ;;
    *" --objective.name="*) OBJECTIVE="${argument#*=}" ;;
  esac
  before="$argument"
  if [ "$argument" = --dry-run ]; then DRY_RUN=1; else ARGUMENTS+=("$argument"); fi
done
SUFFIX="" # of folders
[ "$OBJECTIVE" = c3po ] || SUFFIX="-$OBJECTIVE"
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

# train_policy SCOPE FLAGS…: reinforcement under $OBJECTIVE; with c3po on a budget of $BUDGET tokens, global or of each rank
train_policy() {
  local budget=()
  if [ "$OBJECTIVE" = c3po ]; then budget=(--budget.tokens "$BUDGET" --budget.scope "$1"); fi
  launch megatron_ring.rl --objective.name "$OBJECTIVE" ${budget[@]+"${budget[@]}"} "${@:2}"
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
