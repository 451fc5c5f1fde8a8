"""`generate` as a user runs it: a file of prompts, lines of standard input, and what can be wrong."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mains.conftest import command, run, start


@pytest.fixture(scope="module")
def model(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Flags of a random tiny model, a Hugging Face folder."""
    out = tmp_path_factory.mktemp("model") / "hf"
    done = run([sys.executable, "tools/make_random_hf.py", "--preset", "ring-tiny", "--out", str(out)])
    assert done.returncode == 0, done.stderr
    return ["--checkpoint", str(out), "--tokenizer", str(tiny_data / "tokenizer"), "--sampling.max-new-tokens", "9"]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "1 + 1 = ?"}\n{"id": "b", "prompt": [{"role": "user", "content": "2 + 2?"}]}\n')
    return path


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_a_file_of_prompts(model: list[str], prompts: Path, tmp_path: Path) -> None:
    flags = [*model, "--prompts", str(prompts), "--samples", "2", "--sampling.page-size", "4"]
    done = run(command("megatron_ring.generate", *flags, "--out", str(tmp_path / "one.jsonl")))
    assert done.returncode == 0, done.stderr
    found = rows(tmp_path / "one.jsonl")
    assert [(row["id"], row["sample"]) for row in found] == [("1", 0), ("1", 1), ("b", 0), ("b", 1)]
    assert all(row["tokens"] == 9 or row["finish_reason"] == "stop" for row in found)
    written = "".join(f"--- {row['id']}, response {row['sample'] + 1}\n{row['response']}\n" for row in found)
    assert done.stdout == written
    # Of two replicas the first writes its own responses, then the other's; the file has all in order.
    flags += ["--parallel.expert", "2", "--out", str(tmp_path / "two.jsonl")]
    done = run(command("megatron_ring.generate", *flags, processes=2))
    assert done.returncode == 0, done.stderr
    again = rows(tmp_path / "two.jsonl")
    assert [row["response"] for row in again] == [row["response"] for row in found]
    assert done.stdout == "".join(
        f"--- {row['id']}, response {row['sample'] + 1}\n{row['response']}\n" for row in found[::2] + found[1::2]
    )


@pytest.mark.slow
def test_lines_of_standard_input(model: list[str], tmp_path: Path) -> None:
    """Those that cannot be answered are refused, the others answered."""
    flags = [*model, "--out", str(tmp_path / "out.jsonl"), "--raw", "--sampling.temperature", "0"]
    flags += ["--sampling.kv-tokens", "64"]
    lines = b"1 + 1\n\n\xff\n" + b"1 2 " * 2000 + b"\n 2 + 2 \n" + b"1 2 " * 40 + b"\n\xc3\xa9"
    done = run(command("megatron_ring.generate", *flags), input=lines, text=False)
    said = done.stderr.decode()
    assert done.returncode == 0, said
    found = rows(tmp_path / "out.jsonl")
    assert [(row["id"], row["prompt"]) for row in found] == [("1", "1 + 1"), ("4", " 2 + 2 "), ("6", "é")]
    assert done.stdout.decode() == "".join(f"{row['response']}\n" for row in found)
    assert "refused: prompt '2': not UTF-8\n" in said and "refused: prompt '3': " in said and "1024 positions" in said
    assert "refused: --sampling.kv-tokens 64 holds 2 pages" in said


@pytest.mark.slow
def test_typed_lines_on_two_replicas(model: list[str], tmp_path: Path) -> None:
    """The first reads them for both, and shows what either answers."""
    out = tmp_path / "out.jsonl"
    flags = [*model, "--samples", "2", "--parallel.expert", "2", "--out", str(out)]
    arguments = command("megatron_ring.generate", *flags, processes=2)
    done = run(arguments, input=b"1 + 1\n2 + 2\n", text=False, really=True)  # torchrun gives the first rank its input
    assert done.returncode == 0, done.stderr
    found = rows(out)
    assert [(row["id"], row["sample"]) for row in found] == [("1", 0), ("1", 1), ("2", 0), ("2", 1)]
    shown = done.stdout.decode()
    assert all(row["response"] in shown for row in found) and len({row["response"] for row in found}) == 4


def test_ends_that_the_published_folder_names_and_these_flags_do_not(
    model: list[str], prompts: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(model[1], tmp_path / "hf")
    (folder / "generation_config.json").write_text('{"eos_token_id": [0, 7, 9]}')
    flags = ["--checkpoint", str(folder), *model[2:], "--prompts", str(prompts), "--sampling.stop-token-ids", "9"]
    done = run(command("megatron_ring.generate", *flags))
    others = " ".join(done.stderr.splitlines()[0].rpartition("--sampling.stop-token-ids ")[2].split()[1:])
    assert done.returncode == 0 and others in ("7", "0 7"), done.stderr  # 0 may be this tokenizer's eos
    said = f"generate: {folder}/generation_config.json also ends responses at token(s) {others.replace(' ', ', ')}; to do so"
    assert done.stderr.startswith(f"{said} here: --sampling.stop-token-ids 9 {others}\n")


@pytest.mark.slow
def test_a_closed_standard_input_is_named(model: list[str], fails_with: Callable[..., str]) -> None:
    arguments = command("megatron_ring.generate", *model)
    assert "standard input" in fails_with(["bash", "-c", 'exec "$@" <&-', "bash", *arguments])


def test_an_interrupted_session_keeps_its_answers(model: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    arguments = command("megatron_ring.generate", *model, "--out", str(out))
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with start(arguments, text=True, **pipes) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write("1 + 1\n")
        process.stdin.flush()
        while not (line := process.stdout.readline()).endswith("\n"):
            assert line
        time.sleep(0.5)  # it waits for the next line
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and [row["id"] for row in rows(out)] == ["1"] and "Traceback" not in said


def test_a_reader_that_goes_away_is_no_error(model: list[str], prompts: Path, tmp_path: Path) -> None:
    arguments = command("megatron_ring.generate", *model, "--prompts", str(prompts))
    with start(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        said = process.stderr.read()
    assert process.returncode == 141 and said == b"", said


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--prompts", "nothing.jsonl"], "nothing.jsonl: no such file"),
        (["--prompts", "BAD"], "bad.jsonl:2: 'prompt' is missing"),
        (["--prompts", "LONG"], "the model has only 1024 positions"),
        (["--prompts", "GOOD", "--out", "FOLDER"], "cannot be written: Is a directory"),
        (["--prompts", "GOOD", "--out", "UNDER"], "cannot be written: File exists"),
        (["--prompts", "GOOD", "--sampling.kv-tokens", "8"], "--sampling.kv-tokens 8 holds 0 pages of 32 tokens"),
        (["--sampling.top-p", "0"], "--sampling.top-p is 0.0, outside (0, 1]"),
        (["--sampling.stop-strings", ""], "--sampling.stop-strings: an empty text"),
        (["--raw", "--instruction", "x"], "drop one"),
        (["--samples", "0"], "--samples is 0"),
    ],
)
def test_bad_input(
    fails_with: Callable[..., str], model: list[str], prompts: Path, tmp_path: Path, flags: list[str], said: str
) -> None:
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a"}\n{"answer": "b"}\n')
    (tmp_path / "long.jsonl").write_text(json.dumps({"prompt": "1 2 " * 2000}) + "\n")
    files = {"GOOD": prompts, "BAD": tmp_path / "bad.jsonl", "LONG": tmp_path / "long.jsonl",
             "FOLDER": tmp_path, "UNDER": prompts / "out.jsonl"}  # fmt: skip
    line = fails_with(command("megatron_ring.generate", *model, *(str(files.get(flag, flag)) for flag in flags)))
    assert said in line
