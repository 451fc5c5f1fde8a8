#!/usr/bin/env bash
# What docs/performance.md and docs/serving.md tell of sampling on one GPU, measured again. Each part is a process of its own
# with a time limit, its output in OUT/PART.log, and a line in OUT/parts.tsv (part, exit status, seconds).
#
#   tools/measure_gpu.sh OUT                          all parts that need no files, 54 minutes at most
#   tools/measure_gpu.sh OUT tail tail-no-flights     some
#   START=DIR PROMPTS=FILE tools/measure_gpu.sh OUT solve-rates sizes
#   tools/measure_gpu.sh --dry-run OUT [PART…]        the commands alone
#
# START: a folder in the published layout with its tokenizer (examples/study/start.sh makes one). PROMPTS: a prompt file (7,000
# problems of GSM8K were used). PRESET: another model than ring-lite. CUDA_VISIBLE_DEVICES chooses the GPU.
set -uo pipefail

fail() {
  echo "error: $1" >&2
  exit 2
}

DRY_RUN=
if [ "${1:-}" = --dry-run ]; then
  DRY_RUN=1
  shift
fi
case "${1:-}" in "" | -*) fail "tools/measure_gpu.sh [--dry-run] OUT [PART…]" ;; esac
PYTHON="$(command -v "${PYTHON:-python}")" || fail "no ${PYTHON:-python}: name one with PYTHON=…"
PYTHON="$(cd "$(dirname "$PYTHON")" && pwd)/$(basename "$PYTHON")"
PRESET="${PRESET:-ring-lite}" PORT="${PORT:-8123}"
OUT="$(realpath -m "$1")" START="$(realpath -m "${START:-START}")" PROMPTS="$(realpath -m "${PROMPTS:-PROMPTS}")"
case "$OUT$START$PROMPTS" in *[[:space:]]*) fail "OUT, START and PROMPTS: leave out spaces" ;; esac
shift
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
PARTS=(doctor tests check tail tail-no-flights tail-no-early tail-fp8 at-once profile profile-fp8 serve)
[ "$#" -gt 0 ] || set -- "${PARTS[@]}"

sampler="tools/bench_sampler.py --preset $PRESET"
tail="$sampler --prompts 64 --samples 16 --prompt-tokens 128 --new-tokens 2048 --lengths long-tail --repeats 3"
tail="$tail --sampling.max-batch 1024"
at_once="$sampler --samples 1 --prompt-tokens 512 --new-tokens 128 --sampling.prefill-tokens 16384 --repeats 3 --both-weights"
profile="tools/profile_sampler.py --preset $PRESET"
load="--preset $PRESET --prompts 256 --samples 1 --prompt-tokens 512 --new-tokens 512"
served="--sampling.prefill-tokens 16384 --sampling.max-batch 256"
check="tools/check_sampler.py --preset $PRESET --prompts 32 --samples 4"
solve="tools/solve_rate.py --prompts $PROMPTS --out $OUT/rated --samples 16 -- --checkpoint $START --tokenizer $START"
solve="$solve --sampling.temperature 0.7 --sampling.top-p 1 --sampling.max-new-tokens 256 --rewards.workers 8"
rl="-m megatron_ring.rl --init-from $START --data.prompts $PROMPTS --data.tokenizer $START --steps 9 --save-every 50"
rl="$rl --prompts-per-step 64 --samples-per-prompt 16 --sampling.max-new-tokens 115 --budget.tokens 81920 --budget.scope rank"
rl="$rl --optimizer.lr 3e-6 --precision bf16"

# commands PART: a line each: seconds that it may take, then what Python is given
commands() {
  case "$1" in
    doctor) echo "120 tools/doctor.py" ;;
    tests) echo "600 -m pytest -q tests/gpu tests/sampler/test_decoding_kernels.py tests/sampler/test_fp8_weights.py" ;;
    check) printf '120 %s\n' "$check" "$check --sampling.weights fp8" ;;
    tail) echo "240 $tail" ;;
    tail-no-flights) echo "240 $tail --no-flights" ;;
    tail-no-early) echo "240 $tail --no-early" ;;
    tail-fp8) echo "240 $tail --sampling.weights fp8" ;;
    at-once) printf "120 $at_once --prompts %s\n" 128 256 512 1024 ;;
    profile) printf '120 %s\n' "$profile --rows 32 64 128 256 512 1024" "$profile --rows 32 64 128 --prompt-tokens 1700" ;;
    profile-fp8) echo "120 $profile --rows 32 64 128 256 512 1024 --sampling.weights fp8" ;;
    serve)
      echo "240 tools/bench_sampler.py $load $served --repeats 2"
      echo "240 server tools/bench_serving.py $load --url http://127.0.0.1:$PORT --wait-seconds 120 --repeats 3"
      ;;
    solve-rates) echo "600 $solve" ;;
    sizes)
      echo "120 $rl --run-dir $OUT/sizes-auto"
      echo "120 $rl --run-dir $OUT/sizes-131072-1024 --data.micro-batch-tokens 131072 --sampling.max-batch 1024"
      echo "120 $rl --run-dir $OUT/sizes-32768-1024 --data.micro-batch-tokens 32768 --sampling.max-batch 1024"
      echo "120 $rl --run-dir $OUT/sizes-65536-512 --data.micro-batch-tokens 65536 --sampling.max-batch 512"
      ;;
    *) return 1 ;;
  esac
}

# measure PART LIMIT COMMAND: its line in parts.tsv, and its exit status
measure() {
  local part="$1" limit="$2" command="$3" began="$SECONDS" server="" status
  if [ "${command%% *}" = server ]; then
    command="${command#server }"
    # shellcheck disable=SC2086  # words of the command
    "$PYTHON" tools/serve_random.py --preset "$PRESET" --port "$PORT" $served >"$OUT/server.log" 2>&1 </dev/null &
    server=$!
  fi
  # shellcheck disable=SC2086
  timeout "$limit" "$PYTHON" $command >>"$OUT/$part.log" 2>&1 </dev/null
  status=$?
  if [ -n "$server" ]; then
    kill "$server" 2>/dev/null
    wait "$server" 2>/dev/null
  fi
  printf '%s\t%s\t%s\n' "$part" "$status" "$((SECONDS - began))" | tee -a "$OUT/parts.tsv"
  return "$status"
}

for part in "$@"; do
  commands "$part" >/dev/null || fail "no part is named $part: ${PARTS[*]} solve-rates sizes"
  case "$part" in solve-rates | sizes)
    [ -n "$DRY_RUN" ] || { [ -e "$START" ] && [ -e "$PROMPTS" ]; } || fail "$part: START=$START or PROMPTS=$PROMPTS is not there"
    ;;
  esac
done
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
[ -n "$DRY_RUN" ] || mkdir -p "$OUT" || exit 2
failed=0
for part in "$@"; do
  while read -r limit command; do
    if [ -n "$DRY_RUN" ]; then
      echo "$part: $command"
    else
      measure "$part" "$limit" "$command" || failed=1
    fi
  done < <(commands "$part")
done
exit "$failed"
