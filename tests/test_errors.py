"""How a main ends on an error: one line, once for a launch of several processes, and nothing left behind."""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path

import pytest
import torch.distributed as dist

from megatron_ring.errors import StoppedByAlarm, UserError, run_main
from megatron_ring.parallel import context
from tests.conftest import ROOT
from tests.processes import environment, run

FAILS = "from megatron_ring.errors import UserError, run_main\ndef main(): raise UserError('--seed: no')\nrun_main(main)\n"
WRITES = "import tempfile; from megatron_ring.errors import run_main; run_main(lambda: print(tempfile.mkdtemp()))"


@pytest.mark.distributed
def test_of_several_processes_one_speaks_and_leaves_no_file(tmp_path: Path) -> None:
    (tmp_path / "fails.py").write_text(FAILS)
    (tmp_path / "temporary").mkdir()
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = run([*launcher, tmp_path / "fails.py"], env=environment(TMPDIR=str(tmp_path / "temporary")), timeout=100)
    assert done.returncode == 1 and done.stderr.count("error: --seed: no") == 1, done.stderr
    deadline = time.monotonic() + 20
    while left := list((tmp_path / "temporary").glob("ring-error-*")):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


@pytest.mark.parametrize(("raised", "status"), [(UserError("no"), 2), (StoppedByAlarm("no"), 3), (KeyboardInterrupt(), 130)])
def test_the_process_group_is_left_where_a_main_ends_early(raised: BaseException, status: int) -> None:
    """gloo aborted some processes that ended with their group, and the status was lost."""

    def main() -> None:
        context.start_processes()
        raise raised

    with pytest.raises(SystemExit) as ended:
        run_main(main)
    assert ended.value.code == status and not dist.is_initialized()


@pytest.mark.skipif(shutil.which("bwrap") is None, reason="needs bubblewrap to take every folder away")
def test_no_temporary_folder_is_one_line() -> None:
    nothing_to_write = ["bwrap", "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--chdir", str(ROOT)]
    command = [*nothing_to_write, sys.executable, "-c", WRITES]
    done = run(command, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 2, done.stderr
    assert done.stderr == "error: no temporary folder can be written to: set TMPDIR to one that can\n"
