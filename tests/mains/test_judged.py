"""`evaluate` with a judge: a server that judges by rule, our own server, a checkpoint through our own sampler."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron_ring.benchmarks.thinking import scored_text
from tests.judging.rule_server import Answer, RuleServer, by_length, completion
from tests.mains.conftest import command, command_of_tool, run
from tests.serving.conftest import launch


@pytest.fixture(scope="module")
def flags(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    out = tmp_path_factory.mktemp("model") / "hf"
    done = run([sys.executable, "tools/make_random_hf.py", "--preset", "ring-tiny", "--out", str(out)])
    assert done.returncode == 0, done.stderr
    return ["--checkpoint", str(out), "--tokenizer", str(tiny_data / "tokenizer"), "--sampling.max-new-tokens", "12",
            "--rewards.workers", "1"]  # fmt: skip


@pytest.fixture(scope="module")
def judge(flags: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same random model with room for a judge's prompts."""
    out = tmp_path_factory.mktemp("judge") / "hf"
    shutil.copytree(flags[1], out)
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 8192}))
    return out


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The judged sets in their public forms, and a baseline's answers in two of them."""
    folder = tmp_path_factory.mktemp("judged")

    def write(name: str, rows: list[dict[str, Any]]) -> None:
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    count = 4
    write(
        "alignbench.jsonl",
        [{"question_id": i, "category": "c", "question": f"问{i}", "reference": "答"} for i in range(count)],
    )
    write("fofo.jsonl", [{"id": i, "instruction": f"as XML {i}", "domain": "d", "format": "XML"} for i in range(count)])
    (folder / "simpleqa.csv").write_text(
        "metadata,problem,answer\n" + "".join(f"\"{{'topic': 'Art'}}\",who {i}?,me\n" for i in range(count))
    )
    write("arena-hard.jsonl", [{"uid": f"u{i}", "category": "hard_prompt", "prompt": f"do {i}"} for i in range(count)])
    answers = ["x" * 15, "", "<think>long, long, long, long</think>y", "z" * 40]
    write(
        "new.jsonl",
        [
            {
                "uid": f"u{i}",
                "model": "b",
                "messages": [{"role": "user", "content": "do"}, {"role": "assistant", "content": {"answer": answers[i]}}],
            }
            for i in range(count)
        ],
    )
    write("old.jsonl", [{"question_id": f"u{i}", "choices": [{"index": 0, "turns": [{"content": answers[i]}]}]}
                        for i in range(count)])  # fmt: skip
    return folder


def sets(files: Path, *names: str) -> list[str]:
    return ["--benchmark", *[f"{path.name.split('.')[0]}={path}" for name in names for path in files.glob(f"{name}.*")]]


def judged_by(url: str, *more: str) -> list[str]:
    return ["--judge.url", url, "--judge.model", "rule", *more]


def parts_of(out: Path) -> dict[str, dict[str, Any]]:
    return {part["benchmark"]: part for part in json.loads((out / "result.json").read_text())["benchmarks"]}


ALL = ("alignbench", "fofo", "simpleqa", "arena-hard")


@pytest.mark.slow
def test_a_judge_that_goes_by_rule(flags: list[str], files: Path, tmp_path: Path) -> None:
    """Sampled without a judge first; then judged: by a server that is broken off, by one that works, again for nothing."""
    out = tmp_path / "out"
    arguments = command("megatron_ring.evaluate", *flags, *sets(files, *ALL), "--out", str(out))
    done = run(arguments)
    assert done.returncode == 0 and "AlignBench needs --judge" in done.stdout, done.stderr
    assert {part["score"] for part in parts_of(out).values()} == {None}
    sampled = (out / "responses" / "replica-0.jsonl").read_bytes()

    def breaks(body: dict[str, Any], number: int) -> Answer:
        return (401, {}, b"enough") if number > 5 else completion(by_length(body["messages"][0]["content"]))

    more = (
        "--judge.baseline",
        str(files / "new.jsonl"),
        "--judge.cache",
        str(tmp_path / "cache"),
        "--judge.concurrency",
        "1",
    )
    with RuleServer(breaks) as server:
        done = run([*arguments, *judged_by(server.url, *more)])
        assert done.returncode == 2 and "status 401: enough" in done.stderr.splitlines()[-1], done.stderr
        server._answer = lambda body, number: completion(by_length(body["messages"][0]["content"]))
        before = len(server.asked)
        done = run([*arguments, *judged_by(server.url, *more)])
        assert done.returncode == 0, done.stderr
        # One question to see whether it works; five were answered before; twelve cases of one order, four of two.
        assert len(server.asked) - before <= 1 + 12 + 8 - 5
        before = len(server.asked)
        first = (out / "result.json").read_text()
        assert run([*arguments, *judged_by(server.url, *more)]).returncode == 0 and len(server.asked) == before + 1
        again = json.loads((out / "result.json").read_text())
    assert (out / "responses" / "replica-0.jsonl").read_bytes() == sampled
    result = json.loads(first)
    assert {**again, "seconds": 0} == {**result, "seconds": 0}
    parts = parts_of(out)
    rows = {}
    for line in (out / "responses" / f"judge-{result['judge']['fingerprint']}.jsonl").read_text().splitlines():
        row = json.loads(line)
        rows[row["benchmark"], row["id"]] = row
    assert len(rows) == 16 and all(part["judge"]["judged"] == 4 == part["responses"] for part in parts.values())
    texts = {}
    for line in sampled.decode().splitlines():
        row = json.loads(line)
        if "response" in row:
            texts[row["benchmark"], row["id"]] = scored_text(row["response"]) or ""
    for (name, problem), row in rows.items():
        length = len(texts[name, problem])
        if name == "alignbench":
            assert row["score"] == min(10, 1 + length // 3) / 10
        elif name == "arena-hard":
            other = (15, 0, 1, 40)[int(problem[1:])]
            assert row["score"] == (0.5 if length == other else float(length > other)) and len(row["verdicts"]) == 2
    assert parts["alignbench"]["score"] == pytest.approx(
        sum(r["score"] for k, r in rows.items() if k[0] == "alignbench") / 4
    )
    assert (
        parts["arena-hard"]["judge"]["orders_agree"] == 1
        and parts["arena-hard"]["judge"]["prompts"]["pairwise"]["version"] == 1
    )
    assert "f1" in parts["simpleqa"]["judge"] and "pass_at_k" not in parts["fofo"]
    assert result["judge"]["model"] == "rule" and len(result["judge"]["baseline_sha256"]) == 64
    page = (out / "report.html").read_text()
    assert "Judged by rule" in page and "length ρ" in page
    tool = run(command_of_tool("compare_results.py", "--first", str(out), "--second", str(out)))
    assert tool.returncode == 0, tool.stderr
    assert set(json.loads(tool.stdout)) == set(ALL)


@pytest.mark.slow
def test_our_own_server_as_judge(flags: list[str], judge: Path, files: Path, tmp_path: Path) -> None:
    """A random model keeps to no form: every judgement fails, is counted and excluded, and nothing else breaks."""
    served = launch(["--checkpoint", str(judge), *flags[2:4], "--model-name", "rule"])
    try:
        out = tmp_path / "out"
        url = f"{served.address}/v1"
        arguments = [*flags, *sets(files, "alignbench"), "--out", str(out), *judged_by(url, "--judge.max-tokens", "8")]
        done = run(command("megatron_ring.evaluate", *arguments))
        assert done.returncode == 0, done.stderr
        assert "no score: the judge failed on 4 responses" in done.stdout
        part = parts_of(out)["alignbench"]
        assert part["score"] is None and part["no_verdict"] == 4
        assert (part["judge"]["judge_failed"], part["judge"]["asked_again"]) == (4, 4)
        count = served.get("/metrics")[1]
        assert 'ring_requests_total{path="/v1/chat/completions",status="200"} 9' in count  # a try, four twice
    finally:
        assert served.stop()[0] == 0


@pytest.mark.slow
@pytest.mark.distributed
def test_a_checkpoint_as_judge_over_two_processes(flags: list[str], judge: Path, files: Path, tmp_path: Path) -> None:
    """Loaded after the evaluated model, in the same processes; its replies are those of one process."""
    by = ["--judge.checkpoint", str(judge), "--judge.max-tokens", "6", "--judge.baseline", str(files / "old.jsonl")]
    names = ("alignbench", "arena-hard")
    found = []
    for processes, layout in ((1, []), (2, []), (2, ["--parallel.tensor", "2"])):
        out = tmp_path / f"{processes}{len(layout)}"
        arguments = [*flags, *sets(files, *names), "--out", str(out), *by, *layout]
        done = run(command("megatron_ring.evaluate", *arguments, processes=processes))
        assert done.returncode == 0, done.stderr
        replies = {path.name: path.read_text() for path in (out / "judge").rglob("*.json")}
        assert parts_of(out)["arena-hard"]["judge"]["judge_failed"] == 4
        found.append((replies, {name: part["judge"] for name, part in parts_of(out).items()}))
    assert found[0] == found[1] and len(found[0][0]) == 2 * (4 + 8)
    assert len(found[2][0]) == len(found[0][0])


def test_refusals(fails_with: Callable[..., str], flags: list[str], files: Path, tmp_path: Path) -> None:
    def line(*more: str, names: tuple[str, ...] = ("alignbench",)) -> str:
        return fails_with(command("megatron_ring.evaluate", *flags, *sets(files, *names), "--out", str(tmp_path), *more))

    assert "--judge.url and --judge.model belong together" in line("--judge.url", "http://a/v1")
    assert "one of the two" in line("--judge.url", "http://a", "--judge.model", "m", "--judge.checkpoint", "c")
    assert "--judge.baseline needs a judge" in line("--judge.baseline", "f")
    assert "--judge.max-tokens is 0" in line("--judge.max-tokens", "0")
    assert "nowhere: no such checkpoint" in line("--judge.checkpoint", "nowhere")
    unused = ("--judge.url", "http://127.0.0.1:9/v1", "--judge.model", "m")
    assert "Connection refused" in line(*unused)
    assert "--judge.baseline is missing" in line(*unused, names=("arena-hard",))
    few = tmp_path / "few.jsonl"
    few.write_text('{"uid": "u0", "response": "a"}\n')
    said = line(*unused, "--judge.baseline", str(few), names=("arena-hard",))
    assert "no answer to 3 of 4 problems of arena-hard, the first is u1" in said
    few.write_text('{"uid": "u0", "messages": [{"role": "user", "content": "a"}]}\n')
    assert f"{few}:1: no messages" in line(*unused, "--judge.baseline", str(few), names=("arena-hard",))
    assert "--judge.baseline is of arena-hard" in line(*unused, "--judge.baseline", str(few))
    few.write_text('{"problem": "1+1", "answer": "2"}\n')
    assert "none of these benchmarks is judged" in fails_with(
        command("megatron_ring.evaluate", *flags, "--benchmark", f"math-500={few}", "--out", str(tmp_path), *unused)
    )
