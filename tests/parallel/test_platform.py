"""The platform is set up by a call: imports change nothing, and nothing works, or is too late, without the call."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from megatron_ring.config.parallel import ParallelConfig
from megatron_ring.config.presets import get_preset
from megatron_ring.parallel import context
from tests.conftest import ROOT

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the platform is for machines without CUDA")

# A process that has imported torch alone, and a fork of it for each case: what the case raises, then how many of what the
# platform replaces are others than before.
PROGRAM = """
import os, sys
import torch, torch.distributed as dist
before = [torch.cuda.Event, torch.cuda.current_device, torch.empty, torch.Tensor.cuda, torch.compile, dist.all_to_all_single]
for case in sys.argv[1:]:
    if (child := os.fork()) == 0:
        try:
            exec(case)
            print("nothing", end=" ")
        except Exception as error:
            print(f"{type(error).__name__}: {error}", end=" ")
        after = [torch.cuda.Event, torch.cuda.current_device, torch.empty, torch.Tensor.cuda, torch.compile,
                 dist.all_to_all_single]
        print(sum(a is not b for a, b in zip(before, after)), flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""
CALL = "from megatron_ring.parallel import prepare; prepare()"
ROOMS = "import megatron_ring.parallel.collectives, megatron_ring.training.trainer, megatron_ring.rollout.opening"
CASES = {
    "the call": f"{CALL}\nimport megatron_ring.run.stage\nprepare()",
    "work without it": "from megatron_ring.parallel import context; context.start_processes()",
    "a call too late": f"import megatron_ring.parallel.context, megatron_ring.run.stage; {ROOMS}\n{CALL}",
}


@pytest.fixture(scope="module")
def said() -> dict[str, str]:
    """What each case says."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *CASES.values()], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return dict(zip(CASES, done.stdout.splitlines(), strict=True))


def test_the_call_does_and_may_be_repeated(said: dict[str, str]) -> None:
    assert said["the call"] == "nothing 6"


@pytest.mark.slow
@pytest.mark.parametrize("case", ["work without it", "a call too late"])
def test_work_without_the_call_and_a_call_that_comes_too_late_are_refused(said: dict[str, str], case: str) -> None:
    """Imports that came before a call have changed nothing either."""
    assert said[case].startswith("RuntimeError: ") and said[case].endswith(" 0")
    assert "call megatron_ring.parallel.prepare() before" in said[case]


def _loops_of_gloo() -> list[str]:
    """Names of gloo's threads, of a process in many groups."""
    context.initialize(ParallelConfig(expert=2), get_preset("ring-tiny"), seed=0)
    names = (path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm"))
    return [name for name in names if name.startswith("gloo_")]


@pytest.mark.distributed
def test_all_groups_share_one_thread_of_gloo(run_on: Callable[..., list[list[str]]]) -> None:
    assert [len(names) for names in run_on(2, _loops_of_gloo)] == [1, 1]


FORKS = """
import os, sys
from datetime import timedelta
import torch, torch.distributed as dist
from megatron_ring.parallel.gloo import share_device

def group(name: str, rank: int, size: int) -> float:
    store = dist.FileStore(f"{sys.argv[1]}/{name}", size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=timedelta(seconds=30))
    share_device()
    one = torch.ones(1)
    dist.all_reduce(one, group=dist.new_group(list(range(size))))
    dist.destroy_process_group()
    return one.item()

assert group("before", 0, 1) == 1
children = []
for rank in range(2):
    child = os.fork()
    if child == 0:
        os._exit(0 if group("children", rank, 2) == 2 else 1)
    children.append(child)
assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
assert group("after", 0, 1) == 1
"""


@pytest.mark.distributed
def test_a_fork_has_a_thread_of_gloo_of_its_own(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORKS, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
