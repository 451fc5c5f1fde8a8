"""Benchmarks under every layout, with a budget and without, and killed at random moments: the same responses, scores and
result files."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron_ring.config.evaluate import EvaluateConfig
from megatron_ring.errors import UserError
from megatron_ring.rollout.benchmark_files import read_tasks
from tests.mains.conftest import command, command_of_tool, run, start
from tests.mains.test_benchmarks import outcomes
from tests.mains.test_killed_rl import descendants

LAYOUTS = {"dp2": [], "tp2": ["--parallel.tensor", "2"], "ep2": ["--parallel.expert", "2"],
           "pp2": ["--parallel.pipeline", "2"]}  # fmt: skip
PROBLEMS = 6
BUDGET = ["--token-budget", "700", "--budget-rule", "both", "--budget-samples", "9"]


@pytest.fixture(scope="module")
def flags(tiny_data: Path, sft_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A trained tiny model on held-out problems, whose answers have a majority, and on a prompt that waits for a judge."""
    folder = tmp_path_factory.mktemp("benchmarks")
    lines = [line for line in (tiny_data / "heldout.jsonl").read_text().splitlines() if '"math"' in line][:PROBLEMS]
    (folder / "problems.jsonl").write_text("".join(f"{line}\n" for line in lines))
    (folder / "fofo.jsonl").write_text('{"id": 1, "instruction": "as XML", "domain": "d", "format": "XML"}\n')
    return ["--checkpoint", str(sft_checkpoint), "--tokenizer", str(tiny_data / "tokenizer"), "--sampling.max-new-tokens",
            "24", "--rewards.workers", "1", "--benchmark", f"math-file={folder / 'problems.jsonl'}",
            f"fofo={folder / 'fofo.jsonl'}"]  # fmt: skip


def evaluate_here(flags: list[str]) -> None:
    """The main in this process."""
    from megatron_ring.config.cli import parse
    from megatron_ring.evaluate import main
    from megatron_ring.parallel import context

    main(parse(EvaluateConfig, "ring-evaluate", "", flags))
    context.shutdown()


def result_of(out: Path) -> dict[str, Any]:
    """result.json without its time."""
    return {**json.loads((out / "result.json").read_text()), "seconds": 0}


@pytest.fixture(scope="module")
def alone(run_on: Any, flags: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one process with a budget."""
    out = tmp_path_factory.mktemp("alone") / "out"
    run_on(1, evaluate_here, [*flags, *BUDGET, "--out", str(out)])
    return out


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_has_the_result_of_one_process(
    run_on: Any, alone: Path, flags: list[str], tmp_path: Path, layout: str
) -> None:
    """Sampled at temperature 1, under a budget: which responses are drawn depends on those before."""
    run_on(2, evaluate_here, [*flags, *BUDGET, *LAYOUTS[layout], "--out", str(tmp_path)])
    assert outcomes(tmp_path) == outcomes(alone)
    assert result_of(tmp_path) == result_of(alone)


@pytest.mark.slow
def test_both_rules_are_what_each_gives_alone(run_on: Any, alone: Path, flags: list[str], tmp_path: Path) -> None:
    parts = {part["benchmark"]: part for part in result_of(alone)["benchmarks"]}
    both = parts["math-file"]["budget"]
    assert parts["fofo"]["notes"] == ["without the token budget: its answers have no majority"]
    assert "budget" not in parts["fofo"] and parts["fofo"]["responses"] == 1
    assert both["at_equal_tokens"]["tokens"] == min(rule["spent"] for rule in both["rules"].values()) <= 700
    assert both["rules"]["adaptive"]["decided"] >= 1 and both["rules"]["uniform"]["samples"]["most"] >= 3
    held: dict[Any, Any] = {}
    for rule in ("adaptive", "uniform", "both"):
        # In one folder nothing is sampled twice: what one rule has drawn serves the other.
        run_on(1, evaluate_here, [*flags, *BUDGET[:3], rule, *BUDGET[4:], "--out", str(tmp_path)])
        assert held.items() <= outcomes(tmp_path).items()
        held = outcomes(tmp_path)
        if rule != "both":
            part = next(part for part in result_of(tmp_path)["benchmarks"] if part["benchmark"] == "math-file")
            assert part["budget"]["rules"] == {rule: both["rules"][rule]}
            assert part["responses"] == both["rules"][rule]["responses"] and part["tokens"] == both["rules"][rule]["spent"]
    assert held == outcomes(alone) and result_of(tmp_path) == result_of(alone)
    page = (alone / "report.html").read_text()
    assert "Token budget" in page and "95 % interval" in page and "data:image/png" in page and "<script" not in page
    tool = run(command_of_tool("compare_results.py", "--first", str(alone), "--second", str(tmp_path)))
    assert json.loads(tool.stdout)["math-file"]["problems"] == PROBLEMS
    run_on(1, evaluate_here, [*flags, *BUDGET[:3], "uniform", "--out", str(tmp_path)])
    other = run(command_of_tool("compare_results.py", "--first", str(alone), "--second", str(tmp_path)))
    assert other.returncode == 2 and "other token budgets or rules" in other.stderr


def kill_when(arguments: list[str], out: Path, lines: int, victim: Callable[[list[int]], list[int]]) -> bool:
    """Start, and kill -9 some of its processes once the journals hold so many lines; False where it has ended before."""
    process = start(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while sum(path.read_bytes().count(b"\n") for path in (out / "responses").glob("replica-*.jsonl")) < lines:
            if process.poll() is not None:
                return False
            time.sleep(0.002)
        for pid in victim(list(descendants(process.pid))):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait(60)
        return process.returncode != 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def writes(pid: int, name: str) -> bool:
    """Whether a process holds a file of this name open."""
    with contextlib.suppress(OSError):
        return any(os.readlink(link).endswith(f"/{name}") for link in Path(f"/proc/{pid}/fd").iterdir())
    return False


@pytest.mark.slow
@pytest.mark.distributed
def test_killed_at_random_moments(alone: Path, flags: list[str], tmp_path: Path) -> None:
    """All of it, then one rank of two, whose end is that of the launch; then it goes on to the same files."""
    rng = random.Random(7)
    whole = len(outcomes(alone))
    arguments = [*flags, *BUDGET, "--out", str(tmp_path)]
    moments = sorted(rng.sample(range(3, whole - 12), 2))
    one, two = (command("megatron_ring.evaluate", *arguments, processes=processes) for processes in (1, 2))
    assert kill_when(one, tmp_path, moments[0], lambda pids: pids)
    assert kill_when(two, tmp_path, moments[1], lambda pids: [pid for pid in pids if writes(pid, "replica-1.jsonl")])
    assert not (tmp_path / "result.json").exists()
    done = run(one)
    assert done.returncode == 0, done.stderr
    assert outcomes(tmp_path) == outcomes(alone) and result_of(tmp_path) == result_of(alone)
    assert (tmp_path / "report.html").read_bytes() == (alone / "report.html").read_bytes()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"token_budget": 0}, "--token-budget is 0, below 1"),
        ({"final_token_budget": 5}, "--final-token-budget is where --token-budget grows to"),
        ({"token_budget": 9, "final_token_budget": 5}, "--final-token-budget is 5, below --token-budget 9"),
        ({"token_budget": 9, "benchmark_samples": 2}, "--benchmark-samples is given with --token-budget"),
        ({"token_budget": 9, "budget_confidence": 1.0}, "--budget-confidence is 1.0"),
        ({"token_budget": 9, "budget_samples": 0}, "--budget-samples is 0"),
        ({"token_budget": 9, "benchmark": (), "prompts": Path("p")}, "--token-budget is of benchmarks"),
        ({"token_budget": 9}, "those of fofo cannot: leave it out"),
    ],
)
def test_refusals(given: dict[str, Any], said: str, tmp_path: Path) -> None:
    (tmp_path / "fofo.jsonl").write_text('{"id": 1, "instruction": "as XML"}\n')
    usual: dict[str, Any] = {
        "benchmark": (f"fofo={tmp_path / 'fofo.jsonl'}",),
        "checkpoint": tmp_path,
        "tokenizer": tmp_path,
    }
    with pytest.raises(UserError, match=said):
        read_tasks(EvaluateConfig(**{**usual, "out": tmp_path, **given}))
