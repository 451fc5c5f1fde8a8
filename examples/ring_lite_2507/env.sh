# Settings of the Ring-lite-2507 pipeline, sourced by every launcher here: those of Ring-lite, and what is new. Override them in
# the environment, or edit them. `NODES=1` before a launcher is the same on one machine, as in ../ring_lite.
#
# The post states the data (67k math, 32k code, 9.9k science, 19k logic) and the order of stages. Settings that it does not
# state are those of the Ring-lite report, or ours where a launcher says so.

OUT="${OUT:-runs/ring_lite_2507}"                       # every stage writes below it
DATA="${DATA:-data}"
CURATED="$DATA/curated"                                 # curate.sh: a folder for each recipe
SFT_TRAIN="${SFT_TRAIN:-$CURATED/long_cot/kept.jsonl}"
MATH_PROMPTS="${MATH_PROMPTS:-$DATA/rl_math.yaml}"      # stage files, which curate.sh puts there
CODE_SCIENCE_LOGIC_PROMPTS="${CODE_SCIENCE_LOGIC_PROMPTS:-$DATA/rl_code_science_logic.yaml}"
GENERAL_PROMPTS="${GENERAL_PROMPTS:-$DATA/rl_general.yaml}"
PREFERENCES="${PREFERENCES:-$DATA/preferences_train.jsonl}"
PREFERENCES_VALIDATION="${PREFERENCES_VALIDATION:-$DATA/preferences_validation.jsonl}"
BENCHMARKS="${BENCHMARKS:-benchmarks}"                  # files of the suite, see docs/evaluation.md
NODES="${NODES:-32}"
STEPS_MATH="${STEPS_MATH:-$((137 * 32 / NODES))}"       # 1.05 epochs of 67k; steps are ours, in the report's epochs
STEPS_CODE_SCIENCE_LOGIC="${STEPS_CODE_SCIENCE_LOGIC:-$((167 * 32 / NODES))}" # 1.4 epochs of 61k
STEPS_GENERAL="${STEPS_GENERAL:-$((100 * 32 / NODES))}" # ours

. "$(dirname "${BASH_SOURCE[0]}")/../ring_lite/env.sh"

RECIPES="$ROOT/examples/ring_lite_2507/recipes"
