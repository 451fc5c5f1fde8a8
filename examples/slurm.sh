#!/usr/bin/env bash
# Runs any launcher on all nodes of a Slurm allocation, one torchrun a node:
#
#   sbatch --nodes 32 examples/slurm.sh examples/ring_lite/rl_math.sh
#   sbatch --nodes 1 examples/slurm.sh examples/ring_lite/sft.sh --epochs 5
#
# The repository and the paths of env.sh must be there on every node. A stopped job goes on with the same command.
#
# 120 seconds before its time is over the job is asked to stop: the run saves at the end of its step, and the job goes back
# into the queue. Steps that take longer need an earlier signal and a longer --grace-seconds.
#SBATCH --job-name=ring
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=96
#SBATCH --exclusive
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
set -euo pipefail

if [ $# -lt 1 ] || [ ! -f "$1" ]; then
  echo "error: name a launcher: sbatch --nodes N examples/slurm.sh examples/ring_lite/sft.sh [FLAGS]" >&2
  exit 2
fi
for argument in "$@"; do
  # A dry run needs no allocation, so it can be had before one: no Slurm variable is read then.
  if [ "$argument" = --dry-run ]; then exec bash "$@"; fi
done
: "${SLURM_JOB_ID:?start it with sbatch, or inside salloc}"
hosts="$(scontrol show hostnames "$SLURM_JOB_NODELIST")"
export MASTER_ADDR="${hosts%%$'\n'*}"
export MASTER_PORT="${MASTER_PORT:-$((20000 + SLURM_JOB_ID % 20000))}"
export NODES="$SLURM_NNODES"
export GPUS="${GPUS:-${SLURM_GPUS_ON_NODE:-8}}"
# Each task learns its node's number from Slurm itself. Launchers and torchrun ignore USR1: the run alone acts on it.
srun --kill-on-bad-exit=1 --ntasks-per-node=1 ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"} \
  bash -c 'trap "" USR1; export NODE_RANK="$SLURM_NODEID"; exec bash "$@"' launcher "$@" &
steps=$!
stopping=""
trap 'stopping=1; scancel --signal=USR1 "$SLURM_JOB_ID"' USR1
trap 'scancel --signal=TERM "$SLURM_JOB_ID"' TERM INT
status=0
wait "$steps" || status=$?
while [ "$status" -gt 128 ] && [ -n "$(jobs -r)" ]; do # a signal has ended `wait`, not the job
  status=0
  wait "$steps" || status=$?
done
if [ -n "$stopping" ] && [ "$status" -ne 0 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$status"
