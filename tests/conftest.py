"""Worker pools and paths that several rooms' tests share."""

from __future__ import annotations

import gc
import os
import platform
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Triton's interpreter multiplies by numpy. Where its library chooses kernels for newer processors, the last bits of a row
# may depend on the rows beside it, which tests of --exact look at. Before anything loads numpy.
if platform.machine() == "x86_64":
    os.environ.setdefault("OPENBLAS_CORETYPE", "Sandybridge")

import hypothesis
import pytest
import torch

from megatron_ring.parallel import prepare
from tests.distributed import Workers
from tests.processes import default_signals

gc.disable()  # until all tests are there: what loads now stays

# Before anything imports Triton, as torch and megatron-core do: without a GPU its kernels are interpreted. Only tests of
# kernels call them on CPU tensors.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

prepare()  # before test modules import the rooms that build on megatron-core

# The same commit gives the same verdict; `--hypothesis-profile=search` draws new cases at every run. How long one takes says
# how busy the machine is: neither a slow case nor slow drawing is a failure.
_BUSY = {"deadline": None, "suppress_health_check": [hypothesis.HealthCheck.too_slow]}
hypothesis.settings.register_profile("repeatable", derandomize=True, **_BUSY)  # type: ignore[arg-type]
hypothesis.settings.register_profile("search", derandomize=False, **_BUSY)  # type: ignore[arg-type]
hypothesis.settings.load_profile("repeatable")

default_signals()

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"


def pytest_make_parametrize_id(val: object) -> str | None:
    """Bytes have no part in a test's name: what a packer makes of a text may hold the time, and two workers that collect
    different names run nothing."""
    return "bytes" if isinstance(val, bytes) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files of many slow tests first, files of none last: a worker that has nothing left to do then waits for a short file,
    not for a long one. xdist would order them by their number of tests (`--no-loadscope-reorder`)."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


def pytest_collection_finish() -> None:
    """Some six thousand tests and their modules stay to the end: no search for garbage walks them."""
    gc.freeze()
    gc.enable()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # Triton's bindings, taken down at the end, would tell of all that they find kept


@pytest.fixture(scope="session")
def _pools() -> Iterator[dict[int, Workers]]:
    pools: dict[int, Workers] = {}
    yield pools
    for pool in pools.values():
        pool.close()


@pytest.fixture(scope="session")
def run_on(_pools: dict[int, Workers]) -> Callable[..., list[Any]]:
    """`run_on(processes, function, *arguments)`: call it in that many real processes over gloo (NCCL where there are
    GPUs); results by rank."""

    def run(processes: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        if processes not in _pools or not _pools[processes].alive:
            _pools[processes] = Workers(processes)
        return _pools[processes](function, *arguments)

    return run


@pytest.fixture(scope="session")
def golden() -> Path:
    """Parity vectors of the public modelling code, kept beside the project."""
    folder = SHARED / "golden"
    if not folder.is_dir():
        pytest.skip("golden vectors are not beside the project")
    return folder
