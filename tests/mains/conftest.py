"""Tiny real data, and the mains run as real processes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.processes import environment, run, start

__all__ = ["command", "command_of_tool", "environment", "rl_flags", "run", "sft_flags", "start"]


def command(module: str, *flags: str, processes: int = 1) -> list[str]:
    """How a user launches a main."""
    if processes == 1:
        return [sys.executable, "-m", module, *flags]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return [*launcher, "-m", module, *flags]


def command_of_tool(tool: str, *flags: str, processes: int = 1) -> list[str]:
    """How a user launches a script of tools/."""
    if processes == 1:
        return [sys.executable, f"tools/{tool}", *flags]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return [*launcher, f"tools/{tool}", *flags]


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 SFT problems, 60 validation, 60 RL, 24 held-out, and a tokenizer."""
    out = tmp_path_factory.mktemp("data")
    done = run([sys.executable, "tools/make_tiny_data.py", "--out", str(out), "--train", "200", "--validation", "60",
                "--rl", "60", "--heldout", "24"])  # fmt: skip
    assert done.returncode == 0, done.stderr
    return out


def sft_flags(data: Path, run_dir: Path, *more: str) -> list[str]:
    return ["--run-dir", str(run_dir), "--preset", "ring-tiny", "--data.train", str(data / "sft_train.jsonl"),
            "--data.validation", str(data / "sft_validation.jsonl"), "--data.tokenizer", str(data / "tokenizer"),
            "--data.context-length", "512", "--data.global-batch", "2", "--epochs", "2", "--optimizer.lr", "3e-3",
            *more]  # fmt: skip


def rl_flags(data: Path, run_dir: Path, start: Path, *more: str, budget: int | None = 200) -> list[str]:
    """Flags of a tiny RL run; a budget belongs to C3PO alone."""
    phi = [] if budget is None else ["--budget.tokens", str(budget), "--budget.scope", "global"]
    return ["--run-dir", str(run_dir), "--init-from", str(start), "--data.prompts", str(data / "rl_prompts.jsonl"),
            "--data.tokenizer", str(data / "tokenizer"), "--data.micro-batch-tokens", "512", "--steps", "2",
            "--prompts-per-step", "4", "--samples-per-prompt", "4", *phi, "--sampling.max-new-tokens", "24",
            "--optimizer.lr", "1e-4", "--rewards.workers", "1", *more]  # fmt: skip


@pytest.fixture(scope="session")
def sft_run(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished SFT run of two epochs."""
    out = tmp_path_factory.mktemp("runs") / "sft"
    done = run(command("megatron_ring.sft", *sft_flags(tiny_data, out)), really=True)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="session")
def sft_checkpoint(sft_run: Path) -> Path:
    return sft_run / "checkpoints" / (sft_run / "checkpoints" / "latest").read_text().strip()


@pytest.fixture
def fails_with() -> Callable[..., str]:
    """Run arguments that must end with exit status 2 and one line on stderr; the line."""

    def check(arguments: Sequence[str], really: bool = False) -> str:
        done = run(arguments, really=really)
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        assert done.returncode == 2, (done.returncode, done.stderr)
        assert len(lines) == 1 and lines[0].startswith("error: "), done.stderr
        return lines[0]

    return check
