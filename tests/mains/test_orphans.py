"""Processes of a run do not go on when the torchrun that started them is killed."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.mains.conftest import command, environment, sft_flags
from tests.mains.test_killed_rl import descendants


def wait_for(condition, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.distributed
def test_no_rank_outlives_torchrun(tiny_data: Path, tmp_path: Path) -> None:
    flags = sft_flags(tiny_data, tmp_path / "run", "--epochs", "1000", "--parallel.expert", "2")
    launched = command("megatron_ring.sft", *flags, processes=2)
    torchrun = subprocess.Popen(launched, env=environment(), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: (tmp_path / "run" / "metrics.jsonl").exists() or torchrun.poll() is not None, 120)
        ranks = [pid for pid in descendants(torchrun.pid) if pid != torchrun.pid]
        assert len(ranks) >= 2
        assert all(running(pid) for pid in ranks)
    finally:
        torchrun.kill()
        torchrun.wait()
    wait_for(lambda: not any(running(pid) for pid in ranks), 10)
