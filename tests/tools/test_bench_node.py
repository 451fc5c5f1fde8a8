"""The measurement of a whole machine: each part's command is one that its tool takes; parts that are killed, late, done."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megatron_ring.config.cli import parse
from tests.conftest import ROOT
from tests.processes import run

sys.path.insert(0, str(ROOT / "tools"))  # as when the tool itself runs

from bench_collectives import BenchCollectives
from bench_node import BenchNode, once, read
from bench_node import main as measure
from bench_node import run as run_part
from bench_sampler import BenchSampler
from bench_train import Bench
from node_parts import Part, looked, stepped

# Counts how often it was started, writes a line of metrics every 0.1 s, and leaves a child of another session behind.
MODULE = """
import json, os, subprocess, sys, time
folder, lines, pause = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
open(folder + "/started", "a").write("x")
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
open(folder + "/children", "a").write(f"{child.pid}\\n")
done = sum(1 for _ in open(folder + "/metrics.jsonl")) if os.path.exists(folder + "/metrics.jsonl") else 0
for number in range(done, lines):
    time.sleep(0.1)
    open(folder + "/metrics.jsonl", "a").write(json.dumps({"time/step": 0.1, "reward": number}) + "\\n")
time.sleep(pause)
child.kill()
"""


@pytest.mark.slow
@pytest.mark.parametrize("preset, gpus", [("ring-lite", 8), ("ring-lite", 4), ("ring-lite-slice-4", 1)])
def test_each_part_is_a_command_that_its_tool_takes(preset: str, gpus: int, tmp_path: Path) -> None:
    """Mains plan their runs: on 80 GB GPUs each fits."""
    tools: dict[str, type] = {
        "bench_train.py": Bench,
        "bench_sampler.py": BenchSampler,
        "bench_collectives.py": BenchCollectives,
    }
    seen = []
    for part in BenchNode(out=tmp_path, preset=preset, gpus=gpus).parts():
        first, *rest = part.command
        if first in tools:
            parse(tools[first], first, "what it does", rest)
        elif first == "-m":
            done = run([sys.executable, "-m", *rest, "--dry-run", "--plan.world", str(gpus), "--plan.preset", preset])
            assert done.returncode == 0 and "peak in training" in done.stdout, (part.name, done.stderr)
        seen.append(part.name)
    whole = ["doctor", "collectives", "train-ep", "sample-ep", "data", "sft", "rl", "rl-killed", "rl-tp2-ep", "train-tp2-ep",
             "sample-dp", "sample-tp2-dp", "scale-1-dp", "scale-2-dp", "scale-2-ep", "scale-4-dp", "scale-4-ep"]  # fmt: skip
    alone = ["doctor", "train-dp", "sample-dp", "data", "sft", "rl", "rl-killed"]
    more = ["scale-8-dp", "scale-8-ep"] if gpus == 8 else []
    assert [re.sub(r"ep\d$", "ep", name) for name in seen] == (alone if gpus == 1 else whole + more)


def part(folder: Path, lines: int, pause: float = 0.0, seconds: int = 60, kill_at: int | None = None) -> Part:
    command = ("-m", "noted", str(folder), str(lines), str(pause))
    return Part("noted", 1, seconds, command, (), stepped, folder, kill_at)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "noted.py").write_text(MODULE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


def left_running(folder: Path) -> list[str]:
    """Children that live on; one that was just killed has a moment to go."""
    until = time.monotonic() + 5
    pids = (folder / "children").read_text().split()
    while (left := [pid for pid in pids if sleeps(pid)]) and time.monotonic() < until:
        time.sleep(0.05)
    return left


def sleeps(pid: str) -> bool:
    try:
        return b"sleep" in Path("/proc", pid, "cmdline").read_bytes()
    except OSError:
        return False


def test_a_part_is_killed_once_and_started_again(folder: Path) -> None:
    row = run_part(part(folder, 6, kill_at=3), 60, folder)
    assert row["ended"] == "well" and 3 <= row["killed_after_lines"] < 6
    assert row["figures"] == {"steps": 6, "time/step": 0.1, "reward": 5}
    assert (folder / "started").read_text() == "xx" and not left_running(folder)


def test_a_part_that_takes_too_long_ends_with_all_that_it_started(folder: Path) -> None:
    began = time.monotonic()
    row = run_part(part(folder, 2, pause=600), 5.0, folder)  # by then it has begun, on a busy machine too
    assert row["ended"] == "late" and "figures" not in row and time.monotonic() - began < 30 and not left_running(folder)
    with (folder / "log").open("w") as stream:
        failed = Part("none", 1, 60, ("-m", "no_such_module"), (), looked)
        assert once(failed, stream, time.monotonic() + 60, None) == (1, None)


@pytest.mark.slow
def test_what_ended_well_is_not_run_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = BenchNode(out=tmp_path, preset="ring-tiny", gpus=1, only="data")
    measure(config)
    with (tmp_path / "results.jsonl").open("a") as stream:
        stream.write('{"part": "data", "en')  # the machine went away
    assert list(read(tmp_path)) == ["data"]
    measure(config)
    said = capsys.readouterr()
    assert "1/1 data: done before" in said.err and said.out.count("| data | 1 | well |") == 2
    command = [sys.executable, str(ROOT / "tools" / "bench_node.py"), "--out", str(tmp_path), "--only", "nothing"]
    refused = run(command)
    assert refused.returncode == 2 and refused.stderr.startswith("error: --only nothing: no such part; there are doctor, ")


@pytest.mark.slow
@pytest.mark.distributed
def test_collectives_between_two_processes() -> None:
    command = f"-m torch.distributed.run --standalone --nproc-per-node 2 {ROOT}/tools/bench_collectives.py --mebibytes 1"
    done = run([sys.executable, *shlex.split(command), "--calls", "2", "--repeats", "1"])
    assert done.returncode == 0, done.stderr
    rates = json.loads(done.stdout)["bus_gb_per_second"]["1 MiB"]
    assert set(rates) == {"all_reduce", "all_gather", "reduce_scatter", "all_to_all"} and min(rates.values()) > 0
    alone = subprocess.run([sys.executable, f"{ROOT}/tools/bench_collectives.py"], capture_output=True, text=True)
    assert alone.returncode == 2 and alone.stderr.startswith("error: one process has nobody to talk to")
