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

# What the platform replaces, before and after the code of a case.
PROGRAM = """
import torch, torch.distributed as dist
before = [torch.cuda.Event, torch.cuda.current_device, torch.empty, torch.Tensor.cuda, torch.compile, dist.all_to_all_single]
{code}
after = [torch.cuda.Event, torch.cuda.current_device, torch.empty, torch.Tensor.cuda, torch.compile, dist.all_to_all_single]
print(sum(a is not b for a, b in zip(before, after)))
"""


def run(code: str) -> tuple[str, str]:
    """What a process prints, and the last line of its traceback."""
    done = subprocess.run([sys.executable, "-c", PROGRAM.format(code=code)], cwd=ROOT, capture_output=True, text=True)
    return done.stdout, done.stderr.strip().split("\n")[-1]


@pytest.mark.slow
def test_imports_change_nothing_of_torch() -> None:
    code = "import megatron_ring.parallel.context, megatron_ring.parallel.collectives, megatron_ring.training.trainer"
    assert run(f"{code}\nimport megatron_ring.rollout.opening, megatron_ring.run.stage")[0] == "0\n"


def test_the_call_does_and_may_be_repeated() -> None:
    call = "from megatron_ring.parallel import prepare; prepare()"
    assert run(f"{call}\nimport megatron_ring.run.stage\nprepare()") == ("6\n", "")


def test_work_without_the_call_is_refused() -> None:
    _, error = run("from megatron_ring.parallel import context; context.start_processes()")
    assert error.startswith("RuntimeError: ") and "call megatron_ring.parallel.prepare() before" in error


@pytest.mark.slow
def test_a_call_that_comes_too_late_is_refused() -> None:
    _, error = run("import megatron_ring.run.stage; from megatron_ring.parallel import prepare; prepare()")
    assert error.startswith("RuntimeError: ") and "call megatron_ring.parallel.prepare() before" in error


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
