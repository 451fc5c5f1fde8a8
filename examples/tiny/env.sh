# Settings of the tiny pipeline, sourced by every launcher here. Override them in the environment: SEED=2 examples/tiny/sft.sh
# OBJECTIVE=grpo examples/tiny/rl.sh is another objective than C3PO (see ../launch.sh) -> $OUT/rl-grpo

SEED="${SEED:-1}"                       # data, weights, sampling
OUT="${OUT:-runs/tiny-seed$SEED}"       # everything goes here
NODES="${NODES:-1}"                     # machines
GPUS="${NPROC:-1}"                      # processes on each; more than one needs EXTRA with a layout
EXTRA="${EXTRA:-}"                      # more flags for every stage, such as "--parallel.tensor 2"
PYTHON="${PYTHON:-python}"
PRESET=ring-tiny

DATA="$OUT/data"
TOKENIZER="${TOKENIZER:-$DATA/tokenizer}"
SFT_TRAIN="${SFT_TRAIN:-$DATA/sft_train.jsonl}"
PROMPTS="${PROMPTS:-$DATA/rl_prompts.jsonl}"
HELDOUT="${HELDOUT:-$DATA/heldout.jsonl}"
MAX_NEW_TOKENS="${MAX_NEW_TOKENS:-80}"
BUDGET="${BUDGET:-6144}"                # Phi over all ranks
# The band of validation entropy in which the SFT checkpoint is chosen (nats per token).
# The report found 0.3 to 0.5 for long chains of thought; templated text of this size is more certain.
ENTROPY_LOW=0.15
ENTROPY_HIGH=0.30

# Matrices this small run faster on one thread than on two.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

. "$(dirname "${BASH_SOURCE[0]}")/../launch.sh"

# reinforce RUN START FLAGS…: what the RL runs of this folder have in common, under OBJECTIVE -> $OUT/RUN
reinforce() {
  local run="$1" start="$2"
  shift 2
  # shellcheck disable=SC2086
  train_policy global --run-dir "$OUT/$run" --init-from "$start" --seed "$SEED" \
    --data.prompts "$PROMPTS" --data.tokenizer "$TOKENIZER" --data.micro-batch-tokens 2048 \
    --steps "${STEPS:-90}" --prompts-per-step "${PROMPTS_PER_STEP:-24}" --samples-per-prompt 16 \
    --sampling.max-new-tokens "$MAX_NEW_TOKENS" --objective.kl-beta 0.05 \
    --optimizer.lr 2e-4 --optimizer.schedule cosine --optimizer.beta2 0.99 --router.balance 1e-2 --router.z 1e-4 \
    --rewards.workers 1 "$@" $EXTRA
}
