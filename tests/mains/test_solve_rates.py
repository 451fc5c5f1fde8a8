"""An evaluation of a prompt file that is killed goes on where it stood. `test_curated` has `tools/solve_rate.py` itself."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from megatron_ring.config.evaluate import EvaluateConfig
from megatron_ring.config.metadata import changeable, flag_of, names_of
from megatron_ring.config.sampling import SamplingConfig
from megatron_ring.rollout.scored_rows import flag_of_part
from tests.mains.conftest import run, start
from tests.mains.test_evaluation_layouts import evaluate_here
from tests.mains.test_killed_rl import descendants

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("model") / "hf"
    done = run([sys.executable, "tools/make_random_hf.py", "--preset", "ring-tiny", "--out", str(out)])
    assert done.returncode == 0, done.stderr
    return out


def test_solve_rates_need_no_torch() -> None:
    code = "import sys, tools.solve_rate; print([name for name in ('torch', 'transformers') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)  # a process of its own
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


@pytest.mark.slow
def test_a_killed_evaluation_goes_on(run_on: Any, model: Path, tiny_data: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join((tiny_data / "heldout.jsonl").read_text().splitlines(keepends=True)[:12]))
    flags = ["--checkpoint", str(model), "--tokenizer", str(tiny_data / "tokenizer"), "--prompts", str(prompts),
             "--samples-per-problem", "4", "--sampling.max-new-tokens", "48",
             "--sampling.max-batch", "2", "--rewards.workers", "1"]  # fmt: skip
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run_on(1, evaluate_here, [*flags, "--out", str(whole)])
    journal = killed / "unfinished" / "replica-0.jsonl"
    process = start([sys.executable, "-m", "megatron_ring.evaluate", *flags, "--out", str(killed)],
                    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    try:
        while not (journal.exists() and journal.read_bytes().count(b"\n") >= 5):
            assert process.poll() is None
            time.sleep(0.002)
        for pid in descendants(process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    assert not (killed / "result.json").exists()
    there, begun = journal.read_bytes().count(b"\n"), json.loads((killed / "unfinished" / "evaluation.json").read_text())
    # On two ranks; of the rows that are there none is sampled again.
    run_on(2, evaluate_here, [*flags, "--out", str(killed)])
    assert (killed / "samples.jsonl").read_bytes() == (whole / "samples.jsonl").read_bytes()
    results = [{**json.loads((out / "result.json").read_text()), "seconds": 0} for out in (killed, whole)]
    assert results[0] == results[1] and results[0]["problems"] == 12 and there < 48
    # All that decides responses is in the result, by which rows that are there are known.
    deciding = set(names_of(SamplingConfig)) - changeable(SamplingConfig)
    of_model = {"weights", "activations"}
    assert deciding - of_model | {f"sampling_{name}" for name in of_model} <= results[0].keys()
    # Each of it has a flag, which is named where another evaluation finds rows in its folder.
    flags = {flag_of(name) for name in names_of(EvaluateConfig)}
    about = set(json.loads((killed / "result.json").read_text())) & set(begun)
    assert about == set(begun) and {flag_of_part(name).split(" or ")[0] for name in begun} <= flags
    assert not (killed / "unfinished").exists()
