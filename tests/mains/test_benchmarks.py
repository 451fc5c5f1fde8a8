"""`evaluate` on benchmarks with a small random model: several files in one command, a kill, refusals."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron_ring.run.lock import take_lock
from tests.mains.conftest import command, command_of_tool, run


@pytest.fixture(scope="module")
def flags(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    out = tmp_path_factory.mktemp("model") / "hf"
    done = run([sys.executable, "tools/make_random_hf.py", "--preset", "ring-tiny", "--out", str(out)])
    assert done.returncode == 0, done.stderr
    return ["--checkpoint", str(out), "--tokenizer", str(tiny_data / "tokenizer"), "--sampling.max-new-tokens", "6",
            "--rewards.workers", "1", "--benchmark-samples", "2"]  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small files in the public forms, as a suite's folder has them."""
    folder = tmp_path_factory.mktemp("benchmarks")
    aime = [{"problem": f"{i}+1?", "answer": f"0{i + 1}"} for i in range(3)]
    (folder / "aime-2024.jsonl").write_text("".join(json.dumps(row) + "\n" for row in aime))
    (folder / "gpqa-diamond.csv").write_text(
        "Question,Correct Answer,Incorrect Answer 1,Incorrect Answer 2,Incorrect Answer 3\nWhy?,a,b,c,d\nHow?,e,f,g,h\n"
    )
    (folder / "bbh").mkdir()
    examples = {"canary": "x", "examples": [{"input": "( [", "target": "] )"}, {"input": "1", "target": "1"}]}
    (folder / "bbh" / "dyck_languages.json").write_text(json.dumps(examples, indent=1))
    live = {"question_id": "a", "question_content": "q", "contest_date": "2024-09-01", "difficulty": "easy",
            "public_test_cases": json.dumps([{"input": "1", "output": "1", "testtype": "stdin"}])}  # fmt: skip
    rows = [live, {**live, "question_id": "b", "contest_date": "2023-09-01"}]
    (folder / "math-500.json").write_text(json.dumps([{"Question": "2+2?", "Answer": 4, "level": 1}]))
    (folder / "drop.jsonl").write_text(json.dumps({"context": "p q", "ref_text": "x|y"}) + "\n")
    (folder / "livecodebench.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def outcomes(out: Path) -> dict[tuple[Any, ...], Any]:
    """Scores and texts of a folder, by their keys."""
    found = {}
    for path in sorted((out / "responses").glob("replica-*.jsonl")):
        for line in path.read_text().splitlines():
            row = json.loads(line)
            kind = "response" if "response" in row else "score"
            found[row["benchmark"], row["id"], row["sample"], kind] = row[kind]
    return found


@pytest.mark.slow
def test_a_suite_resumes_and_compares(flags: list[str], files: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    suite = ["--suite", "ring-lite", "--benchmark-dir", str(files), "--benchmark", f"bbh={files / 'bbh'}",
             f"drop={files / 'drop.jsonl'}"]  # fmt: skip
    arguments = command("megatron_ring.evaluate", *flags, *suite, "--out", str(out))
    done = run(arguments)
    assert done.returncode == 0, done.stderr
    assert "GPQA-diamond: 2 problems x 2" in done.stdout and "no file for aime-2025" in done.stdout
    result = json.loads((out / "result.json").read_text())
    parts = {part["benchmark"]: part for part in result["benchmarks"]}
    assert set(parts) == {"aime-2024", "gpqa-diamond", "bbh", "drop", "livecodebench", "math-500"}
    assert parts["livecodebench"]["problems"] == 1 and parts["livecodebench"]["window"] == "2024-08-01:2025-01-31"
    assert parts["aime-2024"]["published"] == {"ring-lite-2507": 79.79} and len(parts["aime-2024"]["sha256"]) == 64
    assert all(part["truncated"] + part["unparsed"] <= part["responses"] for part in parts.values())
    page = (out / "report.html").read_text()
    assert "GPQA-diamond" in page and "79.79" in page and "<script" not in page
    whole = outcomes(out)
    assert len(whole) == 2 * sum(part["responses"] for part in parts.values()) == 2 * 20
    # As a kill leaves it: half of the lines, the last one cut.
    journal = out / "responses" / "replica-0.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:17]) + lines[17][:20])
    assert run(arguments).returncode == 0
    assert outcomes(out) == whole
    again = json.loads((out / "result.json").read_text())
    assert {**again, "seconds": 0} == {**result, "seconds": 0}
    tool = run(command_of_tool("compare_results.py", "--first", str(out), "--second", str(out)))
    compared = json.loads(tool.stdout)
    assert compared["bbh"]["problems"] == 2 and compared["bbh"]["p_value"] == 1
    other = run([*arguments, "--seed", "5"])
    assert other.returncode == 2 and "holds an evaluation with another seed" in other.stderr


def test_a_dry_run_reads_the_files(flags: list[str], files: Path, tmp_path: Path) -> None:
    arguments = ["--benchmark", f"bbh={files / 'bbh'}", "--out", str(tmp_path / "out"), "--dry-run"]
    done = run(command("megatron_ring.evaluate", *flags, *arguments))
    assert done.returncode == 0 and "BIG-Bench Hard: 2 problems x 2" in done.stdout, done.stderr
    assert not (tmp_path / "out").exists()


def test_refusals(fails_with: Callable[..., str], flags: list[str], files: Path, tmp_path: Path) -> None:
    def line(*more: str) -> str:
        return fails_with(command("megatron_ring.evaluate", *flags, *more, "--out", str(tmp_path / "out"), "--dry-run"))

    broken = tmp_path / "broken.csv"
    broken.write_text("problem,answer\n1+1,2\n1+2,3,4\n")
    assert f"{broken}:3: more or fewer fields than the 2" in line("--benchmark", f"aime-2024={broken}")
    wrong = tmp_path / "wrong.jsonl"
    wrong.write_text('{"problem": "p", "answer": "x"}\n')
    assert f"{wrong}:1: the answer 'x' is no whole number" in line("--benchmark", f"aime-2024={wrong}")
    assert "unknown benchmark 'aime'" in line("--benchmark", f"aime={broken}")
    assert "give NAME=PATH" in line("--benchmark", "aime-2024")
    assert "--benchmark is given twice" in line("--benchmark", "a=b", "--benchmark", "c=d")
    assert "no such file or folder" in line("--benchmark", "aime-2024=nowhere.jsonl")
    assert "--prompts is missing" in line()
    assert "one of the two" in line("--prompts", str(wrong), "--suite", "ring-lite")
    assert "no file of its benchmarks" in line("--suite", "ring-lite", "--benchmark-dir", str(tmp_path))
    assert "--window 2024: give FROM:TO" in line("--benchmark", f"livecodebench={files}", "--window", "2024")


def test_a_second_evaluation_in_the_folder_is_refused(
    fails_with: Callable[..., str], flags: list[str], files: Path, tmp_path: Path
) -> None:
    arguments = ("--benchmark", f"drop={files / 'drop.jsonl'}", "--out", str(tmp_path))
    with take_lock(tmp_path):
        assert f"--out {tmp_path}: another run is going on in it" in fails_with(
            command("megatron_ring.evaluate", *flags, *arguments)
        )
