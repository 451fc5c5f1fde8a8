"""RL with a checkpoint as judge whose verdicts are real: a tiny model that has learnt one rule and the form of a verdict."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest

from megatron_ring.judging.protocol import PROTOCOLS, Case, first_prompt
from megatron_ring.rewards.instructions.text import answer_part
from megatron_ring.rollout.judge_scorer import JudgeScorer
from tests.mains.conftest import command, rl_flags, run
from tests.mains.test_killed_rl import Kill, kill_within
from tests.mains.test_pipeline import metrics, timeless, weights
from tests.mains.test_policy_judge import judged_prompts, responses

SIGN, WITH, WITHOUT = "}", 9, 2
# A small model cannot read a page: the judge's template shows it the answer between its marks, which bear the code.
TEMPLATE = """{% for m in messages %}{% if m['role'] == 'user' -%}
<role>HUMAN</role>{{ m['content'].split('--- answer ')[-1].split('The scale:')[0] }}{% else -%}
<role>ASSISTANT</role>{{ m['content'] + eos_token }}{% endif %}{% endfor -%}
{% if add_generation_prompt %}<role>ASSISTANT</role>{% endif %}"""


def verdict(answer: str) -> int:
    return WITH if SIGN in answer else WITHOUT


@pytest.fixture(scope="module")
def judge_flags(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Of a judge that marks answers with a closed box 9, others 2: ring-tiny after 2,400 examples."""
    out, rng = tmp_path_factory.mktemp("judge"), random.Random(1)
    (out / "template.jinja").write_text(TEMPLATE)
    solved = [json.loads(line) for line in (tiny_data / "sft_train.jsonl").read_text().splitlines()]
    rows = []
    for _ in range(2_400):
        row, lines = rng.choice(solved), [line for one in rng.sample(solved, 2) for line in one["response"].split("\n")]
        plain = [line[: rng.randrange(1, 12)] for line in lines if SIGN not in line]  # as odd as the policy's answers
        boxes = [line for line in lines if SIGN in line][: rng.choice((0, 0, 1, 2))]
        drawn = [*rng.sample(plain, min(len(plain), rng.randrange(1, 6))), *boxes]
        rng.shuffle(drawn)
        answer = "\n".join(drawn).strip() or "7"
        prompt = first_prompt(PROTOCOLS["score"], Case(row["prompt"], answer))
        code = re.findall(r"^Verdict ([A-Z]{6}): NUMBER$", prompt, re.M)[0]
        rows.append(json.dumps({"prompt": prompt, "response": f"Verdict {code}: {verdict(answer)}"}) + "\n")
    (out / "train.jsonl").write_text("".join(rows))
    done = run(command(
        "megatron_ring.sft", "--run-dir", str(out / "sft"), "--preset", "ring-tiny", "--data.train",
        str(out / "train.jsonl"), "--data.tokenizer", str(tiny_data / "tokenizer"), "--data.chat-template",
        str(out / "template.jinja"), "--data.context-length", "512", "--data.global-batch", "1", "--epochs", "1",
        "--optimizer.lr", "4e-3",
    ))  # fmt: skip
    assert done.returncode == 0, done.stderr
    latest = (out / "sft" / "checkpoints" / "latest").read_text().strip()
    return ["--rewards.judge.checkpoint", str(out / "sft" / "checkpoints" / latest), "--rewards.judge.tokenizer",
            str(tiny_data / "tokenizer"), "--rewards.judge.chat-template", str(out / "template.jinja"),
            "--rewards.judge.max-tokens", "24", "--rewards.judge.again", "0.3", "--rewards.offload"]  # fmt: skip


@pytest.mark.slow
def test_its_verdicts_are_the_rewards_and_a_killed_run_gets_the_same(
    tiny_data: Path, sft_checkpoint: Path, judge_flags: list[str], tmp_path: Path
) -> None:
    prompts = judged_prompts(tiny_data, tmp_path / "prompts.jsonl", ("judge",))
    rows = [json.loads(line) | {"answer": ""} for line in prompts.read_text().splitlines()]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    # On a busy machine the kill could come before a checkpoint of the background is whole.
    flags = ["--data.prompts", str(prompts), *judge_flags, "--steps", "3", "--save-every", "2", "--no-async-save"]
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    done = run(command("megatron_ring.rl", *rl_flags(tiny_data, alone, sft_checkpoint, *flags)))
    assert done.returncode == 0, done.stderr
    found = [row for step in (1, 2, 3) for row in responses(alone, step)]
    answered = [(answer_part(row["response"]).strip(), row) for row in found]
    judged = [(answer, row) for answer, row in answered if answer and "judge_failure" not in row.get("detail", {})]
    right = sum(row["reward"] == pytest.approx(verdict(answer) / 10) for answer, row in judged)
    boxes = sum(SIGN in answer for answer, _ in judged)
    assert len(judged) >= 0.9 * len(found) and right >= 0.95 * len(judged), (len(found), len(judged), right)
    assert 0.1 * len(judged) < boxes < 0.9 * len(judged), "both verdicts are given"
    for answer, row in judged:
        assert row["reason"] == f"judge: {round(10 * row['reward'])}", answer
    arguments = command("megatron_ring.rl", *rl_flags(tiny_data, killed, sft_checkpoint, *flags))
    kill_within(arguments, killed, Kill(JudgeScorer.score, 2, 2_000), tmp_path / "marker")
    done = run(arguments)
    assert done.returncode == 0 and "continuing after step 2" in done.stdout, (done.stdout, done.stderr)
    assert timeless(metrics(killed)) == timeless(metrics(alone)) and weights(killed) == weights(alone)
    for step in (1, 2, 3):
        assert responses(killed, step) == responses(alone, step)
