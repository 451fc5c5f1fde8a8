# Settings of the tiny pipeline, sourced by every launcher here. Override them in the environment: SEED=2 examples/tiny/sft.sh
set -euo pipefail

SEED="${SEED:-1}"                       # data, weights, sampling
OUT="${OUT:-runs/tiny-seed$SEED}"       # everything goes here
NPROC="${NPROC:-1}"                     # processes; more than one needs EXTRA with a layout
EXTRA="${EXTRA:-}"                      # more flags for every stage, such as "--parallel.tensor 2"
PYTHON="${PYTHON:-python}"
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"

DATA="$OUT/data"
TOKENIZER="$DATA/tokenizer"
MAX_NEW_TOKENS=80
# The band of validation entropy in which the SFT checkpoint is chosen (nats per token).
# The report found 0.3 to 0.5 for long chains of thought; templated text of this size is more certain.
ENTROPY_LOW=0.15
ENTROPY_HIGH=0.30

# Matrices this small run faster on one thread than on two.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"

# launch MODULE FLAGS…: one process, or torchrun over $NPROC
launch() {
  local module="$1"
  shift
  if [ "$NPROC" -gt 1 ]; then
    # shellcheck disable=SC2086
    torchrun --standalone --nproc-per-node "$NPROC" -m "$module" "$@" $EXTRA
  else
    # shellcheck disable=SC2086
    "$PYTHON" -m "$module" "$@" $EXTRA
  fi
}
