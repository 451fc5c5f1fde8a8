#!/usr/bin/env bash
# 8. General RL: rule verifiers and the reward model, a KL to where it starts, and a replay share of reasoning -> $OUT/rl_general.
# The reward model lies beside the policy. Total length, rate and KL weight are ours; the post does not state them.
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
START="$(latest "$OUT/rl_code_science_logic$SUFFIX")"
REWARD_MODEL="${REWARD_MODEL:-$(latest "$OUT/reward_model")}"
JUDGE=() # a language model for domains judge/…: JUDGE_URL of an OpenAI-compatible server and JUDGE_MODEL; key in RING_JUDGE_KEY
if [ -n "${JUDGE_URL:-}" ]; then JUDGE=(--rewards.judge.url "$JUDGE_URL" --rewards.judge.model "$JUDGE_MODEL"); fi
reinforce rl_general "$START" "$GENERAL_PROMPTS" "$STEPS_GENERAL" 16384 --objective.kl-beta 1e-2 --optimizer.lr 1e-6 \
  --rewards.reward-model "$REWARD_MODEL" --rewards.compositions "$RECIPES/rewards.json" \
  ${JUDGE[@]+"${JUDGE[@]}"} "$@"
