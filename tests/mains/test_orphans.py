"""Processes of a run do not go on when the torchrun that started them is killed."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from tests.mains.conftest import command, sft_flags, start
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


def imports_torch(pid: int) -> bool:
    try:
        return "libtorch" in Path(f"/proc/{pid}/maps").read_text()
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("when", ["starting", "training"])
def test_no_rank_outlives_torchrun(tiny_data: Path, tmp_path: Path, when: str) -> None:
    flags = sft_flags(tiny_data, tmp_path / "run", "--epochs", "1000", "--parallel.expert", "2")
    launched = command("megatron_ring.sft", *flags, processes=2)
    torchrun = start(launched, really=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def ranks() -> list[int]:
        return [pid for pid in descendants(torchrun.pid) if pid != torchrun.pid]

    def ready() -> bool:
        assert torchrun.poll() is None
        if when == "training":
            return (tmp_path / "run" / "metrics.jsonl").exists()
        return len(ranks()) == 2 and all(imports_torch(pid) for pid in ranks())

    try:
        wait_for(ready, 120)
        started = ranks()
        assert len(started) >= 2
        assert all(running(pid) for pid in started)
    finally:
        torchrun.kill()
        torchrun.wait()
    wait_for(lambda: not any(running(pid) for pid in started), 10)
