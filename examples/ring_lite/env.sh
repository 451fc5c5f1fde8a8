# Settings of the Ring-lite pipeline, sourced by every launcher here. Override them in the environment, or edit them.
#
#   NODES=1 examples/ring_lite/rl_math.sh       the same on one machine: 1/32 of the prompts a step, as much work for a GPU
#   OBJECTIVE=gspo examples/ring_lite/rl_math.sh    with another objective (see ../launch.sh) -> $OUT/rl_math-gspo

# Machines, data, results
NODES="${NODES:-32}"
GPUS="${GPUS:-8}"                                     # of each
PYTHON="${PYTHON:-python}"
OUT="${OUT:-runs/ring_lite}"                          # every stage writes below it
SEED="${SEED:-0}"
HF="${HF:-models/Ling-lite-1.5}"                      # published folder of the base model: weights and tokenizer
TOKENIZER="${TOKENIZER:-$HF}"
DATA="${DATA:-data}"
SFT_TRAIN="${SFT_TRAIN:-$DATA/long_cot_train.jsonl}"  # math 64.5 %, code 25.5 %, science 9.2 %, rest other
SFT_VALIDATION="${SFT_VALIDATION:-$DATA/long_cot_validation.jsonl}"
MATH_PROMPTS="${MATH_PROMPTS:-$DATA/rl_math.jsonl}"                        # the report has 73k
CODE_SCIENCE_PROMPTS="${CODE_SCIENCE_PROMPTS:-$DATA/rl_code_science.jsonl}" # 14k code, 3,833 science; or a stage file
GENERAL_TRAIN="${GENERAL_TRAIN:-$DATA/general_train.jsonl}"
EVALUATION="${EVALUATION:-$DATA/aime.jsonl}"

# Model and layout. Experts lie over the 8 GPUs of a node, so that their rows travel over NVLink; data parallelism over all.
PRESET=ring-lite                                      # for dry runs before convert.sh has run
LAYOUT=(--parallel.tensor 1 --parallel.pipeline 1 --parallel.expert 8 --precision bf16)
RECOMPUTE="${RECOMPUTE:-full}"                        # none, experts or full: --dry-run says what fits

# Hyper-parameters of the report (arXiv 2506.14731). Steps of RL are not in it: these are ours, 1.05 and 1.4 epochs.
PROMPTS_PER_STEP="${PROMPTS_PER_STEP:-$((512 * NODES / 32))}" # L
STEPS_MATH="${STEPS_MATH:-$((150 * 32 / NODES))}"
STEPS_CODE_SCIENCE="${STEPS_CODE_SCIENCE:-$((50 * 32 / NODES))}"
PROMPT_TOKENS=2048                                    # left for prompts, of the report's total lengths
BUDGET="${BUDGET:-409600}"                            # Phi of each rank
RL=(--samples-per-prompt 16 --objective.kl-beta 1e-3 --objective.alpha-entropy 5e-4 # c3po's clip of 0.2 is its default
  --router.balance 1e-5 --router.z 1e-7
  --optimizer.lr 3e-6 --optimizer.schedule constant --optimizer.warmup-fraction 0.01
  --sampling.temperature 1 --save-every "$((20 * 32 / NODES))")
BOXED='Please reason step by step, and put your final answer within \boxed{}.'
SFT=(--data.context-length 32768 --data.global-batch 256 --epochs "${EPOCHS:-3}"
  --optimizer.lr 3e-4 --optimizer.schedule cosine --optimizer.warmup-fraction 0.01 --optimizer.weight-decay 0.1)
# On one node a GPU holds 32 times as much of the experts' optimizer state: the reference then waits in host memory. For a KV
# cache of 1.8 times the size give --offload-optimizer, where the node has 190 GiB of host memory to spare for it.
REFERENCE="${REFERENCE:-$([ "$NODES" -gt 1 ] && echo device || echo host)}"

. "$(dirname "${BASH_SOURCE[0]}")/../launch.sh"

# fine_tune NAME START TRAIN FLAGS… -> $OUT/NAME
fine_tune() {
  local name="$1" start="$2" train="$3"
  shift 3
  launch megatron_ring.sft --run-dir "$OUT/$name" --init-from "$start" --seed "$SEED" --data.train "$train" \
    --data.tokenizer "$TOKENIZER" "${SFT[@]}" "${LAYOUT[@]}" --recompute "$RECOMPUTE" "$@"
}

# reinforce NAME START PROMPTS STEPS TOTAL_TOKENS FLAGS… -> $OUT/NAME$SUFFIX. TOTAL_TOKENS: prompt and response together
reinforce() {
  local name="$1" start="$2" prompts="$3" steps="$4" total="$5"
  shift 5
  train_policy rank --run-dir "$OUT/$name$SUFFIX" --init-from "$start" --seed "$SEED" --data.prompts "$prompts" \
    --data.tokenizer "$TOKENIZER" --steps "$steps" --prompts-per-step "$PROMPTS_PER_STEP" "${RL[@]}" \
    --data.micro-batch-tokens "$total" --sampling.max-new-tokens "$((total - PROMPT_TOKENS))" \
    "${LAYOUT[@]}" --recompute "$RECOMPUTE" --reference.place "$REFERENCE" "$@"
}
