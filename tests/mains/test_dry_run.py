"""`--dry-run` of the mains as a user runs it: without GPUs, without process groups, with and without the files."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mains.conftest import command, rl_flags, run, sft_flags

Fails = Callable[..., str]
NOWHERE = Path("nowhere")
PLAN = ["--dry-run", "--plan.preset", "ring-tiny"]


def test_without_any_file_the_plan_is_made_and_says_what_it_could_not_see(tmp_path: Path) -> None:
    for module, flags in (("megatron_ring.sft", sft_flags), ("megatron_ring.rl", None)):
        given = flags(NOWHERE, tmp_path / "r") if flags else rl_flags(NOWHERE, tmp_path / "r", NOWHERE / "checkpoint")
        done = run([sys.executable, "-X", "importtime", "-m", module, *given, *PLAN, "--plan.world", "2"])
        assert done.returncode == 0, done.stderr
        assert "layout          2 GPU(s): TP=1 PP=1 EP=1 ETP=1; 2 data-parallel rank(s)" in done.stdout
        assert done.stdout.count("not checked: ") >= 3 and "peak in training" in done.stdout
        loaded = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in done.stderr.splitlines()}
        assert not loaded & {"torch", "megatron", "transformers"}
        assert not (tmp_path / "r").exists()


def test_files_that_are_there_are_checked(tiny_data: Path, tmp_path: Path) -> None:
    done = run(command("megatron_ring.sft", *sft_flags(tiny_data, tmp_path / "r", "--dry-run")))
    assert done.returncode == 0 and "not checked" not in done.stdout, done.stdout + done.stderr
    conversations = len((tiny_data / "sft_train.jsonl").read_text().splitlines())
    assert f"sft_train.jsonl: {conversations} conversations" in done.stdout
    steps = re.search(r"(\d+) steps an epoch, (\d+) in all", done.stdout)
    assert steps and 2 * int(steps[1]) == int(steps[2])
    assert f"warm-up over 1 of {steps[2]} steps" in done.stdout
    done = run(command("megatron_ring.rl", *rl_flags(tiny_data, tmp_path / "r", NOWHERE, *PLAN)))
    assert done.returncode == 0, done.stderr
    assert "rl_prompts.jsonl: 60 prompts" in done.stdout and "each with a verifier" in done.stdout
    assert re.search(r"the longest prompt has \d+ tokens", done.stdout)
    assert "8 prompts at a round a step, 0.13 epochs of 60 prompts" in done.stdout
    assert done.stdout.count("not checked: ") == 1  # the checkpoint


@pytest.mark.slow
def test_a_checkpoint_tells_its_shape(tiny_data: Path, tmp_path: Path, sft_checkpoint: Path) -> None:
    done = run(command("megatron_ring.rl", *rl_flags(tiny_data, tmp_path / "r", sft_checkpoint, "--dry-run")))
    assert done.returncode == 0 and "not checked" not in done.stdout and "895,616 parameters" in done.stdout, done.stderr
    flags = ["--checkpoint", str(sft_checkpoint), "--prompts", str(tiny_data / "heldout.jsonl"),
             "--tokenizer", str(tiny_data / "tokenizer"), "--out", str(tmp_path / "e"),
             "--sampling.max-new-tokens", "40", "--dry-run"]  # fmt: skip
    done = run(command("megatron_ring.evaluate", *flags))
    assert done.returncode == 0 and "24 problems x 1 = 24 responses over 1 data-parallel rank" in done.stdout, done.stderr
    assert "gradient buffers" not in done.stdout and not (tmp_path / "e").exists()


def test_under_torchrun_one_rank_speaks(tmp_path: Path) -> None:
    flags = sft_flags(NOWHERE, tmp_path / "r", "--dry-run", "--parallel.tensor", "2")
    done = run(command("megatron_ring.sft", *flags, processes=2))
    assert done.returncode == 0 and done.stdout.count("layout          2 GPU(s): TP=2") == 1, done.stderr


@pytest.mark.parametrize(
    ("preset", "flags", "said"),
    [
        ("", "", "--init-from nowhere/checkpoint: not there; --plan.preset NAME tells a dry run the model's shape"),
        ("ring-tinny", "", "did you mean ring-tiny?"),
        ("ring-tiny", "--plan.world 3 --parallel.tensor 2", "TP*PP = 2 does not divide 3"),
        ("ring-tiny", "--plan.world 8", "--prompts-per-step is 4, below the number of data-parallel ranks (8)"),
        ("ring-tiny", "--plan.world 4 --budget.tokens 301", "Phi = 301 does not divide over 4 data-parallel ranks"),
        ("ring-tiny", "--data.micro-batch-tokens 24", "holds no prompt beside"),
        ("ring-tiny", "--plan.world 2 --parallel.tensor 2 --data.micro-batch-tokens 511", "does not split over TP=2"),
        ("ring-tiny", "--sampling.max-new-tokens 1024 --data.micro-batch-tokens 2048", "exceeds the model's 1,024"),
        ("ring-lite", "", "does not fit: "),
        ("ring-lite", "--plan.memory 400 --sampling.kv-tokens 32", "the KV cache holds 32 tokens"),
        ("ring-tiny", "--plan.world 0", "--plan.world is 0"),
        ("ring-tiny", "--exact --plan.world 2 --parallel.tensor 2", "--exact: TP=2 ETP=1"),
        ("ring-tiny", "--exact --precision fp32", "--exact: its kernels want --precision bf16"),
    ],
)
def test_what_cannot_run_is_said_in_one_line(tmp_path: Path, fails_with: Fails, preset: str, flags: str, said: str) -> None:
    start = rl_flags(NOWHERE, tmp_path / "r", NOWHERE / "checkpoint", "--dry-run")
    shape = ["--plan.preset", preset] if preset else []
    line = fails_with(command("megatron_ring.rl", *start, *shape, *flags.split()))
    assert said in line, line


def test_needed_memory_is_named(tmp_path: Path, fails_with: Fails) -> None:
    flags = rl_flags(NOWHERE, tmp_path / "r", NOWHERE, "--dry-run", "--plan.preset", "ring-lite")
    line = fails_with(command("megatron_ring.rl", *flags))
    assert re.search(r"(\d{3}\.\d) GiB are needed on a GPU of pipeline stage 1, --plan.memory 80 GB is 74.5", line)
    assert "--parallel.expert" in line and "--recompute full" in line and "--reference.place host" in line


def test_offloading_is_named_where_it_helps(tmp_path: Path, fails_with: Fails) -> None:
    """An optimizer that fills the GPU: training fits, but the small part of the rest that is given to the cache does not
    hold the longest response."""
    flags = rl_flags(NOWHERE, tmp_path / "r", NOWHERE, "--dry-run", "--plan.preset", "ring-lite-slice-4", "--plan.memory",
                     "66", "--recompute", "full", "--reference.place", "host", "--sampling.kv-fraction", "0.02",
                     "--sampling.max-new-tokens", "30000", "--data.micro-batch-tokens", "30720")  # fmt: skip
    line = fails_with(command("megatron_ring.rl", *flags))
    assert "the KV cache holds " in line and line.endswith("or --offload-optimizer"), line
    done = run(command("megatron_ring.rl", *flags, "--offload-optimizer"))
    assert done.returncode == 0, done.stderr
    assert re.search(r"training: optimizer +31\.79 ", done.stdout) and "31.8 GiB of pinned host memory; " in done.stdout
    line = fails_with(command("megatron_ring.rl", *flags, "--plan.memory", "50"))  # not even training fits
    assert "--offload-optimizer" not in line, line


def test_a_batch_that_does_not_split(tmp_path: Path, fails_with: Fails) -> None:
    flags = [*sft_flags(NOWHERE, tmp_path / "r", "--dry-run"), "--plan.world", "4"]
    said = "--data.global-batch 2 does not split over 4 data-parallel rank(s)"
    assert said in fails_with(command("megatron_ring.sft", *flags))


def unverifiable(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    rows = [{"id": "a", "domain": "math", "prompt": "1+1?", "answer": "2"}]
    rows += [{"id": "b", "domain": "poetry", "prompt": "A line?", "answer": "any"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_stages_of_data_and_held_out_prompts(tiny_data: Path, tmp_path: Path, fails_with: Fails) -> None:
    files = {name: str(tiny_data / f"{name}.jsonl") for name in ("rl_prompts", "heldout")}
    stages = tmp_path / "stages.yaml"
    one, two = ([{"file": files["rl_prompts"], "domain": domain}] for domain in ("math", "science"))
    stages.write_text(json.dumps({"stages": [{"steps": 1, "prompts": one}, {"prompts": two}]}))
    start = rl_flags(tiny_data, tmp_path / "r", NOWHERE, *PLAN, "--data.prompts", str(stages))
    done = run(command("megatron_ring.rl", *start, "--evaluation.prompts", files["heldout"]))
    assert done.returncode == 0, done.stderr
    assert "stages.yaml: 60 prompts (" in done.stdout and ") in 2 stages" in done.stdout
    assert "heldout.jsonl: 24 prompts" in done.stdout
    assert "8 prompts at a round a step\n" in done.stdout  # no epochs: files have shares of their own
    line = fails_with(command("megatron_ring.rl", *start, "--evaluation.prompts", str(unverifiable(tmp_path))))
    assert "--evaluation.prompts" in line and "unknown domain 'poetry'" in line
    two[0]["file"] = "missing.jsonl"
    stages.write_text(json.dumps({"stages": [{"steps": 1, "prompts": one}, {"prompts": two}]}))
    assert "missing.jsonl" in fails_with(command("megatron_ring.rl", *start))


def test_a_domain_without_a_verifier_in_a_dry_run(tiny_data: Path, tmp_path: Path, fails_with: Fails) -> None:
    flags = [*rl_flags(tiny_data, tmp_path / "r", NOWHERE, *PLAN), "--data.prompts", str(unverifiable(tmp_path))]
    line = fails_with(command("megatron_ring.rl", *flags))
    assert "prompts.jsonl: unknown domain 'poetry': use one of " in line


@pytest.mark.slow
def test_refusals_of_a_real_run(tiny_data: Path, tmp_path: Path, sft_checkpoint: Path) -> None:
    """The same mistakes without --dry-run, on two ranks where they need some: one says it, nothing is sampled."""
    prompts = str(unverifiable(tmp_path))
    for number, (more, processes, said) in enumerate(
        [
            (["--data.prompts", prompts], 1, "unknown domain 'poetry'"),
            (["--budget.tokens", "301"], 2, "Phi = 301 does not divide over 2 data-parallel ranks; 300 would"),
            (["--prompts-per-step", "1"], 2, "--prompts-per-step is 1, below the number of data-parallel ranks (2)"),
        ]
    ):
        out = tmp_path / f"r{number}"
        done = run(command("megatron_ring.rl", *rl_flags(tiny_data, out, sft_checkpoint, *more), processes=processes))
        lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert done.returncode != 0 and len(lines) == 1 and said in lines[0], done.stderr
        assert processes > 1 or done.returncode == 2  # torchrun has a status of its own
        assert not (out / "metrics.jsonl").exists() or not (out / "metrics.jsonl").read_text()
