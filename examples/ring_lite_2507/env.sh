# Settings of the Ring-lite-2507 pipeline, sourced by every launcher here: those of Ring-lite, and what is new. Override them in
# the environment, or edit them.

OUT="${OUT:-runs/ring_lite_2507}"                       # every stage writes below it
PREFERENCES="${PREFERENCES:-${DATA:-data}/preferences_train.jsonl}"
PREFERENCES_VALIDATION="${PREFERENCES_VALIDATION:-${DATA:-data}/preferences_validation.jsonl}"

. "$(dirname "${BASH_SOURCE[0]}")/../ring_lite/env.sh"
