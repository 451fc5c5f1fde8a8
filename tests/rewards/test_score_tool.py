from __future__ import annotations

import gzip
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from megatron_ring.data.parquet import parquet_rows
from megatron_ring.data.rows import write_rows
from tests.processes import run

ROOT = Path(__file__).resolve().parents[2]


def score(*arguments: str | Path, cwd: Path = ROOT, really: bool = False) -> subprocess.CompletedProcess[str]:
    return run([sys.executable, ROOT / "tools/score.py", *arguments], cwd=cwd, timeout=60, really=really)


def test_one_line_out_for_each_line_in(tmp_path: Path) -> None:
    good = {"domain": "math", "response": r"\boxed{72}", "answer": "72", "id": 7, "prompt": [{"role": "user"}]}
    lines = [
        json.dumps(good).encode(),
        b"not json",
        b"",
        b"[1]",
        b'{"domain": "math", "response": "\\\\boxed{1}"}',
        b'{"domain": "poetry", "response": "x", "answer": "1"}',
        b'{"domain": "math", "response": 5, "answer": "1"}',
        b'{"domain": "math", "response": "\\\\boxed{\\\\int_0^1 e^{x^{x^x}} dx}", "answer": "x+1"}',
        b'{"domain": "math", "response": "\\\\boxed{1}", "answer": NaN}',
        b'{"domain": "math", "response": "\xff", "answer": "1"}',
        b"[" * 100_000,
        b'{"domain": "math", "response": "", "answer": ' + b"9" * 5000 + b"}",
        b'{"domain": "science", "response": "\\\\boxed{5 \\ud800 cm}", "answer": "5 cm"}',
        json.dumps({"domain": "science", "response": r"\boxed{9.8 m/s²}", "answer": "9.8 m/s^2"}).encode(),
        json.dumps({"domain": "math", "response": r"\boxed{1+x}", "answer": "x+1"}).encode(),
    ]
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_bytes(b"\n".join(lines))
    done = score("--input", source, "--output", target, "--time-limit", "2", "--workers", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("15 lines") and done.stderr == ""
    rows = [json.loads(line) for line in target.read_text().splitlines()]
    assert len(rows) == len(lines)
    assert rows[0] == {**good, "reward": 1.0, "reason": "correct"}
    assert [row["reward"] for row in rows] == [1.0] + [0.0] * 12 + [1.0, 1.0]
    assert all(row["reason"] for row in rows)
    assert [i for i, row in enumerate(rows) if "error" in row] == [1, 2, 3, 9, 10, 11]
    assert rows[8]["answer"] is None and "no 'answer'" in rows[8]["reason"]
    for index, words in [(4, "line 5: no 'answer'"), (5, "poetry"), (6, "must be text"), (7, "time limit")]:
        assert words in rows[index]["reason"]
    assert sorted(os.listdir(tmp_path)) == ["in.jsonl", "out.jsonl"]


def test_it_may_rewrite_its_own_input_and_an_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"domain": "math", "response": r"\boxed{1}", "answer": 1}) + "\n")
    assert score("--input", path, "--output", path).returncode == 0
    assert json.loads(path.read_text())["reward"] == 1.0
    path.write_text("")
    assert score("--input", path, "--output", path).returncode == 0
    assert path.read_text() == ""


def test_parquet_in_and_out(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"domain": "math", "response": rf"\boxed{{{i}}}", "answer": str(i % 2), "tags": [i]} for i in range(5)
    ]
    source, target = tmp_path / "in.parquet", tmp_path / "out.parquet"
    write_rows(source, rows)
    assert score("--input", source, "--output", target).returncode == 0
    scored = list(parquet_rows(target))
    assert [row["reward"] for row in scored] == [1.0, 1.0, 0.0, 0.0, 0.0]
    assert [{key: row[key] for key in rows[0]} for row in scored] == rows
    assert sorted(os.listdir(tmp_path)) == ["in.parquet", "out.parquet"]


def test_compositions_and_details(tmp_path: Path) -> None:
    declared = {"mixed": {"parts": [{"name": "right", "domain": "math"}], "length": {"maximum": 10, "cache": 0}}}
    (tmp_path / "rewards.json").write_text(json.dumps(declared))
    good = {"domain": "mixed", "response": r"\boxed{1}", "answer": "1"}
    rows = [{**good, "length": 10}, {**good, "length": 11}, good, {**good, "length": "10"}, {**good, "length": -5}]
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ("--compositions", tmp_path / "rewards.json", "--detail")
    done = score("--input", source, "--output", target, *flags)
    assert done.returncode == 0, done.stderr
    scored = [json.loads(line) for line in target.read_text().splitlines()]
    assert [row["reward"] for row in scored] == [1.0, 0.0, 0.0, 0.0, 0.0]
    assert scored[4]["reason"].startswith("line 5: 'length'")
    assert scored[1]["detail"] == {"parts": {"right": [1.0, "correct"]}, "gates": {}, "length_penalty": -1.0}
    assert "give 'length' in tokens" in scored[2]["reason"] and "'length' must be a whole number" in scored[3]["reason"]
    (tmp_path / "rewards.json").write_text("{}")
    done = score("--input", source, "--output", target, *flags)
    assert done.returncode == 2 and "rewards.json" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_killed_run_is_continued(tmp_path: Path) -> None:
    responses = [rf"\boxed{{x+{i % 3}}}" for i in range(1000)]
    rows = [{"domain": "math", "response": text, "answer": f"{i % 2}+x"} for i, text in enumerate(responses)]
    source, whole, killed = tmp_path / "in.jsonl", tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert score("--input", source, "--output", whole, "--workers", "2").returncode == 0
    partial = tmp_path / ".killed.jsonl.partial"
    command = [
        sys.executable,
        str(ROOT / "tools/score.py"),
        "--input",
        str(source),
        "--output",
        str(killed),
        "--workers",
        "1",
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (partial.exists() and partial.read_bytes().count(b"\n") > 20):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGSTOP)  # it must still be writing in the next line
    busy = score("--input", source, "--output", killed)
    assert busy.returncode == 2 and "another run is writing it" in busy.stderr
    process.kill()
    process.wait()
    assert not killed.exists()
    with partial.open("ab") as file:
        file.write(b'{"domain": "math", "torn')
    done = score("--input", source, "--output", killed, "--workers", "2")
    assert done.returncode == 0 and done.stdout.startswith("score: continuing after "), done.stderr
    assert killed.read_bytes() == whole.read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["in.jsonl", "killed.jsonl", "whole.jsonl"]
    # Another input under the same name is scored anew.
    partial.write_text('{"reward": 1.0}\n')
    done = score("--input", source, "--output", killed, "--workers", "2")
    assert "continuing" not in done.stdout and killed.read_bytes() == whole.read_bytes()


def test_user_errors_are_one_line_and_status_2(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text("{}\n")
    for arguments, words in [
        (("--input", tmp_path / "none", "--output", tmp_path / "o"), "--input"),
        (("--input", source, "--output", tmp_path / "no/o"), "--output"),
        (("--input", source, "--output", tmp_path), "--output"),
        (("--input", source, "--output", tmp_path / "o.jsonl.gz"), "written as .jsonl or .parquet"),
        (("--input", source, "--output", tmp_path / "o", "--workers", "0"), "workers"),
        (("--input", source, "--output", tmp_path / "o", "--time-limit", "-1"), "time limit"),
    ]:
        done = score(*arguments)
        assert done.returncode == 2 and words in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert os.listdir(tmp_path) == ["in.jsonl"]


def test_a_packed_file_is_unpacked(tmp_path: Path) -> None:
    row = json.dumps({"domain": "math", "response": "\\boxed{2}", "answer": "2"}).encode() + b"\n"
    source, out = tmp_path / "in.jsonl.gz", tmp_path / "out.jsonl"
    source.write_bytes(gzip.compress(row * 3))
    done = score("--input", source, "--output", out)
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["reward"] for line in out.read_text().splitlines()] == [1.0] * 3
    source.write_bytes(gzip.compress(row * 3)[:-9])
    done = score("--input", source, "--output", out)
    assert done.returncode == 2 and "in.jsonl.gz: cannot be read" in done.stderr and done.stderr.count("\n") == 1


def processor_time() -> float:
    """Seconds of the processes that this one has waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_help_is_quick() -> None:
    started = processor_time()
    done = score("--help", really=True)
    assert done.returncode == 0 and "--time-limit" in done.stdout
    assert processor_time() - started < 2.0
