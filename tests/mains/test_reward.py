"""The reward model's main as real processes: from an SFT checkpoint to a scored file and back through a published folder."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron_ring.data.files import read_sft
from megatron_ring.data.rows import write_rows
from megatron_ring.toy.preferences import Solution, planted_pairs
from tests.mains.conftest import command, command_of_tool, rl_flags, run, sft_flags
from tests.mains.test_metrics_reference import differences, documented, written
from tests.mains.test_pipeline import kill_after, metrics, timeless, weights

Fails = Callable[..., str]
NOWHERE = Path("nowhere")


@pytest.fixture(scope="module")
def preferences(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Planted preferences of the tiny data: 200 to learn from, 60 held out."""
    out = tmp_path_factory.mktemp("preferences")
    for name in ("train", "validation"):
        solutions = [Solution(*(m.content for m in one.messages)) for one in read_sft(tiny_data / f"sft_{name}.jsonl")]
        pairs = planted_pairs(solutions, 0, ("format", "truncated", "repetition"))
        rows = [{"prompt": p.prompt, "chosen": p.chosen, "rejected": p.rejected, "subset": p.flaw} for p in pairs]
        write_rows(out / f"{name}.jsonl", [row | {"margin": 0.1} if name == "train" else row for row in rows])
    return out


def reward_flags(preferences: Path, data: Path, run_dir: Path, *more: str) -> list[str]:
    return ["--run-dir", str(run_dir), "--data.train", str(preferences / "train.jsonl"), "--data.validation",
            str(preferences / "validation.jsonl"), "--data.tokenizer", str(data / "tokenizer"), "--data.context-length",
            "512", "--data.global-batch", "2", "--epochs", "2", "--optimizer.lr", "1e-3", *more]  # fmt: skip


@pytest.fixture(scope="module")
def reward_run(preferences: Path, tiny_data: Path, sft_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run from the SFT checkpoint."""
    out = tmp_path_factory.mktemp("runs") / "reward"
    flags = reward_flags(preferences, tiny_data, out, "--init-from", str(sft_checkpoint.parent / "latest"))
    done = run(command("megatron_ring.reward", *flags), really=True)
    assert done.returncode == 0, done.stderr
    assert (
        "200 pairs, 200 with a margin" in done.stdout
        and "router losses are trained on besides: balance 1e-05" in done.stdout
    )
    return out


def latest(run_dir: Path) -> Path:
    return run_dir / "checkpoints" / (run_dir / "checkpoints" / "latest").read_text().strip()


@pytest.mark.slow
def test_planted_preferences_are_learnt_and_written_down(reward_run: Path) -> None:
    rows = metrics(reward_run)
    assert differences(written(reward_run), documented("Reward model")) == ([], [])
    ends = [row for row in rows if "validation/accuracy" in row]
    assert [row["epoch"] for row in ends] == [1.0, 2.0]
    assert ends[-1]["validation/accuracy"] >= 0.95 > 0.8 > rows[0]["accuracy"]
    assert {key.rsplit("/", 1)[-1] for key in ends[-1] if key.startswith("validation/accuracy/")} == {
        "format", "truncated", "repetition"
    }  # fmt: skip
    for row in ends:
        file = json.loads((reward_run / "validation" / f"step_{row['step']}.json").read_text())
        assert file["accuracy"] == row["validation/accuracy"] and file["pairs"] == 60
        assert sum(part["pairs"] for part in file["reliability"]) == 60
        assert (reward_run / "checkpoints" / row["checkpoint"] / "manifest.json").exists()
    assert rows[0]["loss/preference"] == pytest.approx(0.74, abs=0.03)  # -log sigmoid(0 - 0.1): it knows nothing yet
    assert any((reward_run / "tensorboard").iterdir())


@pytest.mark.slow
def test_killed_it_continues_to_the_same_numbers(
    preferences: Path, tiny_data: Path, sft_checkpoint: Path, reward_run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "killed"
    start = str(sft_checkpoint.parent / "latest")
    arguments = command(
        "megatron_ring.reward", *reward_flags(preferences, tiny_data, out, "--init-from", start, "--save-every", "3")
    )
    kill_after(arguments, out, 5)
    done = run(arguments)
    assert done.returncode == 0 and "continuing after step" in done.stdout, done.stderr

    def told(run_dir: Path) -> list[dict[str, Any]]:
        return [{k: v for k, v in row.items() if k != "checkpoint"} for row in timeless(metrics(run_dir))]

    assert told(out) == told(reward_run) and weights(out) == weights(reward_run)
    rows = (preferences / "train.jsonl").read_text().splitlines()
    other = tmp_path / "other"
    shutil.copytree(preferences, other)
    (other / "train.jsonl").write_text("\n".join(rows[1:]) + "\n")
    flags = reward_flags(other, tiny_data, out, "--init-from", start, "--epochs", "3")
    refused = run(command("megatron_ring.reward", *flags))
    assert refused.returncode == 2 and "--data.train: the training data: the content is not that" in refused.stderr


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("flags", [["--parallel.pipeline", "2"], ["--data.micro-batch-tokens", "1024"]])
def test_every_layout_does_the_same(
    preferences: Path, tiny_data: Path, sft_checkpoint: Path, reward_run: Path, tmp_path: Path, flags: list[str]
) -> None:
    more = ["--init-from", str(sft_checkpoint), "--max-steps", "2", *flags]
    ranks = 2 if "--parallel.pipeline" in flags else 1
    figures = ["loss", "accuracy", "reward/gap", "grad_norm", "loss/z", "pairs"]
    figures += ["loss/balance"] if ranks == 2 else []  # the other's are of two packs at a time
    flags = reward_flags(preferences, tiny_data, tmp_path / "r", *more)
    done = run(command("megatron_ring.reward", *flags, processes=ranks))
    assert done.returncode == 0, done.stderr
    for one, two in zip(metrics(reward_run), metrics(tmp_path / "r"), strict=False):
        for key in figures:
            assert two[key] == pytest.approx(one[key], rel=1e-3, abs=1e-5), (key, one["step"])


def score(source: Path, data: Path, file: Path, out: Path, *more: str, processes: int = 1) -> dict[str, Any]:
    flags = ["--checkpoint", str(source), "--tokenizer", str(data / "tokenizer"), "--input", str(file), "--out", str(out)]
    done = run(command_of_tool("score_rewards.py", *flags, *more, processes=processes))
    assert done.returncode == 0, done.stderr
    return json.loads((out / "result.json").read_text())


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "rewards.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.distributed
def test_export_import_and_every_layout_score_alike(
    reward_run: Path, preferences: Path, tiny_data: Path, tmp_path: Path
) -> None:
    held, hf, back = preferences / "validation.jsonl", tmp_path / "hf", tmp_path / "back"
    export = [
        "export",
        "--checkpoint",
        str(latest(reward_run)),
        "--out",
        str(hf),
        "--tokenizer",
        str(tiny_data / "tokenizer"),
    ]
    for arguments in (export, ["import", "--hf", str(hf), "--out", str(back)]):
        done = run([sys.executable, "tools/convert_hf.py", *arguments])
        assert done.returncode == 0, done.stderr
    config = json.loads((hf / "config.json").read_text())
    assert config["architectures"] == ["BailingMoeForSequenceClassification"] and config["id2label"] == {"0": "reward"}
    assert not (hf / "generation_config.json").exists()
    first = score(reward_run / "checkpoints" / "latest", tiny_data, held, tmp_path / "a")
    end = metrics(reward_run)[-1]
    assert first["accuracy"] == end["validation/accuracy"] and first["ece"] == pytest.approx(end["validation/ece"])
    assert first["loss"] == pytest.approx(end["validation/loss"])
    for number, source in enumerate((hf, back)):
        assert score(source, tiny_data, held, tmp_path / f"b{number}")["accuracy"] == first["accuracy"]
        assert lines(tmp_path / f"b{number}") == lines(tmp_path / "a")
    for number, layout in enumerate((["--parallel.tensor", "2"], ["--parallel.expert", "2"])):
        out = tmp_path / f"c{number}"
        score(hf, tiny_data, held, out, *layout, "--batch-tokens", "300", processes=2)
        for one, two in zip(lines(tmp_path / "a"), lines(out), strict=True):
            assert two["rewards"] == pytest.approx(one["rewards"], abs=1e-4)


@pytest.mark.slow
def test_a_reward_model_goes_on_and_is_refused_where_a_language_model_is_needed(
    reward_run: Path, preferences: Path, tiny_data: Path, sft_checkpoint: Path, tmp_path: Path, fails_with: Fails
) -> None:
    source = str(latest(reward_run))
    more = ["--init-from", source, "--max-steps", "1", "--data.margin", "none"]
    done = run(command("megatron_ring.reward", *reward_flags(preferences, tiny_data, tmp_path / "r", *more)))
    assert done.returncode == 0 and metrics(tmp_path / "r")[0]["accuracy"] > 0.9, done.stderr
    said = f"{source}: a reward model, which has no language head: give a language model"
    for dry in ([], ["--dry-run"]):
        flags = [flag for flag in sft_flags(tiny_data, tmp_path / "s") if flag not in ("--preset", "ring-tiny")]
        assert said in fails_with(command("megatron_ring.sft", *flags, "--init-from", source, *dry))
        assert said in fails_with(command("megatron_ring.rl", *rl_flags(tiny_data, tmp_path / "l", Path(source), *dry)))
    flags = ["--checkpoint", str(sft_checkpoint), "--tokenizer", str(tiny_data / "tokenizer"), "--input",
             str(preferences / "validation.jsonl"), "--out", str(tmp_path / "o")]  # fmt: skip
    said = "a language model, which has no score: give a reward model"
    assert said in fails_with([sys.executable, "tools/score_rewards.py", *flags])


@pytest.mark.slow
def test_benchmarks_and_conversations_are_told_by_their_rows(reward_run: Path, tiny_data: Path, tmp_path: Path) -> None:
    files = {
        "reward-bench": [{"prompt": "Find 1 div 1.", "chosen": "\\boxed{1}", "rejected": "", "subset": "hep-go", "id": 1}],
        "reward-bench-2": [{"prompt": "Find 4 div 2.", "chosen": ["\\boxed{2}"], "rejected": ["2", "3"], "num_correct": 1,
                            "subset": "Math", "id": "1"},
                           {"prompt": "Find a digit.", "chosen": ["1", "2"], "rejected": ["x"], "num_correct": 2,
                            "subset": "Ties", "id": "tied:1"},
                           {"prompt": "Find 2.", "chosen": ["2"], "rejected": ["x"], "num_correct": 1, "subset": "Ties",
                            "id": "ref:1"}],
        "conversations": [{"prompt": "Find 4 div 2.", "response": "2"}],
    }  # fmt: skip
    for name, rows in files.items():
        path = tmp_path / f"{name}.jsonl"
        write_rows(path, rows)
        result = score(latest(reward_run), tiny_data, path, tmp_path / name)
        assert result["name"] == name and result["rows"] == len(rows) and len(lines(tmp_path / name)) == len(rows)
        assert result["cut"] == 0 and result["file_sha256"]
        assert ("score" in result) == name.startswith("reward") and ("reward_mean" in result) == (name == "conversations")


@pytest.mark.slow
@pytest.mark.distributed
def test_it_scores_the_policy_under_every_layout(
    reward_run: Path, tiny_data: Path, sft_checkpoint: Path, tmp_path: Path, fails_with: Fails
) -> None:
    """Rewards in rollouts/ are those that tools/score_rewards.py gives the same conversations."""
    prompts, source = tmp_path / "prompts.jsonl", latest(reward_run)
    rows = [json.loads(line) for line in (tiny_data / "rl_prompts.jsonl").read_text().splitlines()]
    write_rows(prompts, [row | {"domain": "reward-model", "answer": ""} for row in rows])
    asked = {row["id"]: row["prompt"] for row in rows}
    held_out, means = tmp_path / "held_out.jsonl", []
    write_rows(held_out, [*rows[:2], *(row | {"domain": "reward-model", "id": f"m{row['id']}"} for row in rows[2:5])])
    for number, layout in enumerate(([], ["--parallel.expert", "2"], ["--parallel.tensor", "2"])):
        out = tmp_path / f"rl{number}"
        more = ["--data.prompts", str(prompts), "--rewards.reward-model", str(source), "--rewards.reward-model-tokens", "99"]
        more += [] if number else ["--evaluation.prompts", str(held_out), "--evaluation.every", "1"]
        flags = rl_flags(tiny_data, out, sft_checkpoint, *more, "--steps", "1", *layout)
        done = run(command("megatron_ring.rl", *flags, processes=2 if layout else 1))
        assert done.returncode == 0, done.stderr
        responses = [json.loads(line) for line in (out / "rollouts/step_1.jsonl").read_text().splitlines()]
        means.append([response["reward"] for response in responses])
    found = metrics(tmp_path / "rl0")[-1]  # raw scores are no part of pass@1
    assert found["evaluation/pass_at_1"] in (0, 0.5, 1) and "evaluation/pass_at_1/reward-model" not in found
    assert found["evaluation/raw_score_mean"] == found["evaluation/raw_score_mean/reward-model"] != 0
    for other in means[1:]:
        assert other == pytest.approx(means[0], abs=1e-3)
    write_rows(tmp_path / "said.jsonl", [{"prompt": asked[r["prompt_id"]], "response": r["response"]} for r in responses])
    score(source, tiny_data, tmp_path / "said.jsonl", tmp_path / "said", "--control-tokens", "keep")
    assert [line["rewards"][0] for line in lines(tmp_path / "said")] == pytest.approx(means[0], abs=1e-3)
    for dry in ([], ["--dry-run"]):
        flags = rl_flags(tiny_data, tmp_path / "x", sft_checkpoint, "--data.prompts", str(prompts), *dry)
        said = f"{prompts}: domain 'reward-model' is scored by 'reward-model': give --rewards.reward-model"
        assert said in fails_with(command("megatron_ring.rl", *flags))
        wrong = {sft_checkpoint: "no score: give a reward model", source.parent / "latest": "names `latest`"}
        for bad, said in wrong.items():
            assert said in fails_with(command("megatron_ring.rl", *flags, "--rewards.reward-model", str(bad)))
    done = run(command("megatron_ring.rl", *flags, "--rewards.reward-model", str(source)))
    assert done.returncode == 0 and "reward model" in done.stdout, done.stderr


def test_dry_run(tiny_data: Path, preferences: Path, tmp_path: Path) -> None:
    plan = ["--dry-run", "--plan.preset", "ring-lite", "--plan.world", "8", "--parallel.expert", "8"]
    flags = reward_flags(NOWHERE, NOWHERE, tmp_path / "r", "--init-from", "nowhere/start", "--data.global-batch", "8", *plan)
    done = run([sys.executable, "-X", "importtime", "-m", "megatron_ring.reward", *flags])
    assert done.returncode == 0, done.stderr
    assert "dry run of reward" in done.stdout and "16.54 B parameters" in done.stdout
    assert "-log sigmoid(r_c - r_r - m), the file's margins x 1; 0.01 x (r_c + r_r)^2; mean over pairs" in done.stdout
    loaded = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert not loaded & {"torch", "megatron", "transformers"} and not (tmp_path / "r").exists()
    done = run(
        command(
            "megatron_ring.reward",
            *reward_flags(preferences, tiny_data, tmp_path / "r", "--preset", "ring-tiny", "--dry-run"),
        )
    )
    assert done.returncode == 0 and "train.jsonl: 200 pairs of " in done.stdout and "not checked" not in done.stdout, (
        done.stderr
    )
    assert "validation.jsonl: 60 pairs" in done.stdout


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--centring", "-1"], "--centring is -1.0, below 0"),
        (["--alarms.action", "rollback"], "--alarms.action rollback: a reward model would meet the same pairs again"),
        (["--alarms.entropy-floor", "1"], "a reward model has no entropy"),
        (["--data.global-batch", "3", "--plan.world", "2", "--dry-run"], "--data.global-batch 3 does not split over 2"),
        (["--data.margin-scale", "-2"], "--data.margin-scale is -2.0"),
        (["--data.fields", "preferred=x"], "preferred is none of prompt, chosen"),
        (["--data.train", "nowhere.jsonl"], "nowhere.jsonl: no such file"),
        (["--data.context-length", "16"], "the pair has"),
        (["--calibration-bins", "0"], "--calibration-bins is 0"),
    ],
)
def test_mistakes_are_one_line(
    tiny_data: Path, preferences: Path, tmp_path: Path, fails_with: Fails, more: list[str], said: str
) -> None:
    flags = reward_flags(preferences, tiny_data, tmp_path / "r", "--preset", "ring-tiny", *more)
    assert said in fails_with(command("megatron_ring.reward", *flags))
