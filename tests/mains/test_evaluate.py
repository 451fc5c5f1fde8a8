"""What `evaluate` refuses before it loads any weights."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mains.conftest import command, run


@pytest.fixture(scope="module")
def flags(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    out = tmp_path_factory.mktemp("model") / "hf"
    done = run([sys.executable, "tools/make_random_hf.py", "--preset", "ring-tiny", "--out", str(out)])
    assert done.returncode == 0, done.stderr
    (out / "model.safetensors").write_bytes(b"no weights")
    return ["--checkpoint", str(out), "--tokenizer", str(tiny_data / "tokenizer"), "--sampling.max-new-tokens", "8"]


def test_a_prompt_that_is_too_long(fails_with: Callable[..., str], flags: list[str], tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    long = {"id": "wordy", "domain": "math", "prompt": "1 2 " * 2000, "answer": "3"}
    prompts.write_text(json.dumps({**long, "id": "a", "prompt": "1 + 2"}) + "\n" + json.dumps(long) + "\n")
    arguments = command("megatron_ring.evaluate", *flags, "--prompts", str(prompts), "--out", str(tmp_path / "out"))
    line = fails_with(arguments, really=True)
    assert "--prompts: prompt 'wordy' has " in line and "--sampling.max-new-tokens 8 leave room for 1,016" in line


def test_a_folder_that_cannot_be_made(fails_with: Callable[..., str], flags: list[str], tiny_data: Path) -> None:
    more = ["--prompts", str(tiny_data / "heldout.jsonl"), "--out", str(tiny_data / "heldout.jsonl")]
    assert "--out" in (line := fails_with(command("megatron_ring.evaluate", *flags, *more))) and "cannot be written" in line


def test_an_answer_that_the_verifier_cannot_use(fails_with: Callable[..., str], flags: list[str], tmp_path: Path) -> None:
    rows = [("math", "1"), ("code", {"x": 1})]
    prompts = tmp_path / "prompts.jsonl"
    lines = [{"id": domain, "domain": domain, "prompt": "1 + 0?", "answer": answer} for domain, answer in rows]
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    line = fails_with(command("megatron_ring.evaluate", *flags, "--prompts", str(prompts), "--out", str(tmp_path / "out")))
    assert f"{prompts}:2: " in line


def test_a_stop_token_that_the_model_cannot_draw(
    fails_with: Callable[..., str], flags: list[str], tiny_data: Path, tmp_path: Path
) -> None:
    more = [
        "--prompts",
        str(tiny_data / "heldout.jsonl"),
        "--out",
        str(tmp_path / "out"),
        "--sampling.stop-token-ids",
        "512",
    ]
    line = fails_with(command("megatron_ring.evaluate", *flags, *more))
    assert "--sampling.stop-token-ids: 512 is outside the model's vocabulary of 512 tokens" in line


def test_a_prompt_that_spells_a_control_token(fails_with: Callable[..., str], flags: list[str], tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"question": "1+1<|endoftext|>?", "answer": "It is 2.\n#### 2"}) + "\n")
    line = fails_with(command("megatron_ring.evaluate", *flags, "--prompts", str(prompts), "--out", str(tmp_path / "out")))
    assert f"{prompts}:1: the user's text spells the control token '<|endoftext|>'" in line


def test_a_public_file_is_read_as_it_is(flags: list[str], tmp_path: Path) -> None:
    prompts = tmp_path / "gsm8k.jsonl"
    prompts.write_text(json.dumps({"question": "1+1?", "answer": "It is 2.\n#### 2"}) + "\n")
    arguments = ["--prompts", str(prompts), "--out", str(tmp_path / "out"), "--dry-run"]
    done = run(command("megatron_ring.evaluate", *flags, *arguments))
    assert done.returncode == 0, done.stderr
    assert "read as GSM8K (question, answer behind ####): 1 rows" in done.stdout and "1 prompts (1 math)" in done.stdout
