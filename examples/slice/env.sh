# A slice of Ring-lite, its full width in a few layers, on one or two GPUs: what the pipeline costs before a cluster does it.
# Sourced by every launcher here. With the generated problems it learns nothing of use; name files of your own:
#
#   GPUS=2 DATA=mine TOKENIZER=Ling-lite-1.5 SFT_TRAIN=mine/sft.jsonl RL_PROMPTS=mine/gsm8k.jsonl examples/slice/sft.sh
#   OBJECTIVE=grpo examples/slice/rl.sh         another objective than C3PO (see ../launch.sh) -> $OUT/rl-grpo

NODES=1
GPUS="${GPUS:-1}"                                     # 1 or 2; with 2 each holds half of the experts
PYTHON="${PYTHON:-python}"
SEED="${SEED:-0}"
OUT="${OUT:-runs/slice}"
DATA="${DATA:-$OUT/data}"                             # data.sh fills it
TOKENIZER="${TOKENIZER:-$DATA/tokenizer}"
SFT_TRAIN="${SFT_TRAIN:-$DATA/sft_train.jsonl}"
SFT_VALIDATION="${SFT_VALIDATION:-$DATA/sft_validation.jsonl}"
RL_PROMPTS="${RL_PROMPTS:-$DATA/rl_prompts.jsonl}"
EVALUATION="${EVALUATION:-$DATA/heldout.jsonl}"

# Model and layout. INIT: a checkpoint or folder to start from, such as what tools/upcycle.py wrote; empty: random weights.
PRESET="${PRESET:-ring-lite-slice-4}"                 # or ring-lite-slice-8, which needs two GPUs
INIT="${INIT:-}"
START=(--preset "$PRESET")
[ -z "$INIT" ] || START=(--init-from "$INIT")
LAYOUT=(--parallel.expert "$GPUS" --precision bf16)

MAX_NEW_TOKENS="${MAX_NEW_TOKENS:-1920}"               # prompt and response within 2,048
BUDGET="${BUDGET:-16384}"                             # Phi of each rank; generated problems have answers of some 20 tokens
STEPS="${STEPS:-20}"

. "$(dirname "${BASH_SOURCE[0]}")/../launch.sh"
