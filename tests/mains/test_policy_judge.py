"""RL with a judge: by a server that judges by rule, and by a checkpoint beside the policy."""

from __future__ import annotations

import json
import re
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron_ring.rewards.instructions.text import answer_part
from tests.judging.rule_server import Answer, RuleServer, completion
from tests.mains.conftest import command, rl_flags, run
from tests.mains.test_pipeline import metrics

DOMAINS = ("judge", "judge/rubric", "judge/reference", "judge/pairwise")


def judged_prompts(data: Path, path: Path, domains: tuple[str, ...] = DOMAINS) -> Path:
    rows = [json.loads(line) for line in (data / "rl_prompts.jsonl").read_text().splitlines()]
    rows = [row | {"domain": domains[number % len(domains)], "answer": "9"} for number, row in enumerate(rows)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def responses(run_dir: Path, step: int) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "rollouts" / f"step_{step}.jsonl").read_text().splitlines()]


def by_hand(rows: list[dict[str, Any]]) -> list[float]:
    """What the rule server gives the responses of a step."""
    texts = [answer_part(row["response"]).strip() for row in rows]
    groups: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        if texts[place]:
            groups.setdefault(row["prompt_id"], []).append(place)

    def one(place: int) -> float:
        length, domain = len(texts[place]), rows[place]["domain"]
        if not length:
            return 0.0
        if domain == "judge":
            return min(10, 1 + length // 3) / 10
        if domain == "judge/rubric":
            return float(length % 2)
        if domain == "judge/reference":
            return float(length % 3 == 2)
        group = groups[rows[place]["prompt_id"]]
        if len(group) == 1:
            return 0.5
        around = [group[(group.index(place) + step) % len(group)] for step in (-1, 1)]
        against = [len(texts[other]) for other in around]
        return sum(0.5 if length == other else float(length > other) for other in against) / 2

    return [one(place) for place in range(len(rows))]


@pytest.mark.slow
def test_a_server_judges_while_it_samples(
    tiny_data: Path, sft_checkpoint: Path, tmp_path: Path, fails_with: Callable[..., str]
) -> None:
    prompts, out = judged_prompts(tiny_data, tmp_path / "prompts.jsonl"), tmp_path / "run"
    with RuleServer() as server:
        judge = ["--rewards.judge.url", server.url, "--rewards.judge.model", "rule", "--rewards.judge.again", "0.3"]
        flags = rl_flags(tiny_data, out, sft_checkpoint, "--data.prompts", str(prompts), *judge)
        done = run(command("megatron_ring.rl", *flags, "--save-every", "1"))
        assert done.returncode == 0, done.stderr
        rows = metrics(out)
        for step in (1, 2):
            found = responses(out, step)
            assert [row["reward"] for row in found] == pytest.approx(by_hand(found))
        assert {row["reward/judge_failures"] for row in rows} == {0} and rows[0]["reward/std"] > 0
        assert {path.name for path in (out / "judge").iterdir()} == {"before"}  # a checkpoint is saved after each step
        # Another address is the same judge; another name is another one.
        with RuleServer() as moved:
            flags[flags.index(server.url)] = moved.url
            done = run(command("megatron_ring.rl", *flags, "--steps", "3"))
            assert done.returncode == 0 and "continuing after step 2" in done.stdout and moved.asked, done.stderr
            said = fails_with(command("megatron_ring.rl", *flags, "--rewards.judge.model", "other", "--steps", "4"))
            assert "rewards.judge.model 'rule' -> 'other'" in said


@pytest.mark.slow
@pytest.mark.parametrize("honest", [False, True])
def test_a_judge_that_likes_length_is_caught(tiny_data: Path, sft_checkpoint: Path, tmp_path: Path, honest: bool) -> None:
    """The run is stopped by its alarm; with a judge of the same scale that goes by something else it is not."""

    def mark(body: dict[str, Any], number: int) -> Answer:
        prompt = body["messages"][0]["content"]
        code = re.findall(r"^Verdict ([A-Z]{6}): NUMBER$", prompt, re.M)
        answer = prompt.split("--- answer ")[-1].split("--- end of answer")[0][11:]
        value = zlib.crc32(answer.encode()) % 10 if honest else min(9, len(answer) // 8)
        return completion(f"Verdict {code[0]}: {1 + value}" if code else "Yes.")

    prompts, out = judged_prompts(tiny_data, tmp_path / "prompts.jsonl", ("judge",)), tmp_path / "run"
    with RuleServer(mark) as server:
        judge = ["--rewards.judge.url", server.url, "--rewards.judge.model", "rule", "--budget.tokens", "500"]
        alarms = ["--alarms.length-correlation", "0.6", "--alarms.window", "2", "--prompts-per-step", "8"]
        flags = rl_flags(tiny_data, out, sft_checkpoint, "--data.prompts", str(prompts), *judge, *alarms)
        done = run(command("megatron_ring.rl", *flags))
    found = [row["watch/length_correlation"] for row in metrics(out)]
    said = "alarm at step 2: watch/length_correlation over 2 steps is "
    assert (done.returncode, said in done.stderr) == ((0, False) if honest else (3, True)), (done.stderr, found)
    assert (sum(found) / len(found) > 0.6) == (not honest)


@pytest.fixture(scope="module")
def judge_checkpoint(sft_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The SFT model with room for a judge's prompts."""
    folder = tmp_path_factory.mktemp("judge") / "step_1"
    shutil.copytree(sft_checkpoint, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["model"]["max_positions"] = 8192
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.mark.slow
def test_a_checkpoint_judges_and_another_is_refused(
    tiny_data: Path, sft_checkpoint: Path, judge_checkpoint: Path, tmp_path: Path, fails_with: Callable[..., str]
) -> None:
    """The SFT model keeps to no form: what it judges has no verdict and is not trained; the rest is."""
    prompts = judged_prompts(tiny_data, tmp_path / "prompts.jsonl", ("judge", "math"))
    judge = [
        "--rewards.judge.checkpoint",
        str(judge_checkpoint),
        "--rewards.judge.max-tokens",
        "4",
        "--rewards.offload",
        "--samples-per-prompt",
        "2",
    ]
    flags = rl_flags(tiny_data, tmp_path / "run", sft_checkpoint, "--data.prompts", str(prompts), *judge, "--steps", "1")
    done = run(command("megatron_ring.rl", *flags, "--budget.tokens", "50"))
    assert done.returncode == 0, done.stderr
    (row,), rows = metrics(tmp_path / "run"), responses(tmp_path / "run", 1)
    failed = [one for one in rows if "judge_failure" in one.get("detail", {})]
    assert len(failed) == row["reward/judge_failures"] > 0 and not any(one["trained_tokens"] for one in failed)
    assert {one["domain"] for one in failed} == {"judge"}
    moved = tmp_path / "moved"
    shutil.copytree(judge_checkpoint, moved)
    again = [str(moved) if flag == str(judge_checkpoint) else flag for flag in flags]
    more = ("--budget.tokens", "50", "--steps", "2")
    assert run(command("megatron_ring.rl", *again, *more)).returncode == 0
    other = [str(sft_checkpoint) if flag == str(judge_checkpoint) else flag for flag in flags]
    said = fails_with(command("megatron_ring.rl", *other, *more))
    assert "--rewards.judge.checkpoint: the judge: the content is not that of the run so far" in said
    for wrong, line in {
        "nowhere": "--rewards.judge.checkpoint: nowhere: no such checkpoint",
        str(sft_checkpoint.parent / "latest"): "names `latest`",
    }.items():
        bad = [wrong if flag == str(judge_checkpoint) else flag for flag in flags]
        assert line in fails_with(command("megatron_ring.rl", *bad))
    done = run(command("megatron_ring.rl", *flags, "--dry-run"))
    assert (
        done.returncode == 0 and "judge " in done.stdout and "of pinned host memory while it does not score" in done.stdout
    )
