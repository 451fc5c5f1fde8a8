"""lm-evaluation-harness against a real server: its log-likelihoods and answers are those of this project in one process."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.processes import run
from tests.serving.conftest import Served

HARNESS = Path(sys.prefix, ".lm_eval")


@pytest.mark.slow
@pytest.mark.skipif(not (HARNESS / "lm_eval").is_dir(), reason="no lm-evaluation-harness: `make lm-eval` installs it")
def test_log_likelihoods_and_answers(served: Served, model: list[str], tmp_path: Path) -> None:
    path = os.pathsep.join([str(ROOT), str(HARNESS)])
    flags = ["--url", served.address, "--model", "tiny", *model[:4]]
    done = run(
        [sys.executable, ROOT / "tools" / "check_serving.py", "harness", *flags],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"},
        timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["log_likelihoods"] == 48 and found["generated"] == 12
    assert found["largest_distance"] < 1e-5 and set(found["generated_otherwise"].values()) == {0}
