"""What a machine without network lacks. Nothing is fetched."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT


def run(*flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools" / "offline_wheels.py"), "--dry-run", *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def listed(*flags: str) -> list[str]:
    done = run("--out", "unused", *flags)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_all_that_is_needed_is_listed_but_torch() -> None:
    pins = listed("--python", "3.12")
    assert len({pin.split("==")[0] for pin in pins}) == len(pins)
    # The last of a chain of needs: pint's, pydantic's.
    names = {"megatron-core", "tyro", "platformdirs", "pydantic-core", "typing-inspection", "uvicorn"}
    assert names <= {pin.split("==")[0] for pin in pins}
    assert not [pin for pin in pins if pin.startswith(("torch==", "nvidia", "triton", "megatron-ring", "pytest"))]
    assert "megatron-core==0.16.1" not in pins and "megatron-core==0.16.1" in listed("--python", "3.11")


def test_what_is_there_stays_out(tmp_path: Path) -> None:
    have = tmp_path / "have.txt"
    have.write_text(
        "Package         Version\n--------------- -------\nPyYAML          6.0\nTyping_Inspection 0.4.5\nnumpy==2.5.2\n"
    )
    left = {pin.split("==")[0] for pin in listed("--have", str(have), "--also", "pytest-timeout")}
    assert not left & {"pyyaml", "typing-inspection", "numpy"} and {"pytest-timeout", "pytest", "tyro"} <= left


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--python", "3"), "--python"),
        (("--have", "no-such"), "no such file"),
        (("--also", "no-such-package"), "not installed"),
    ],
)
def test_one_line_says_what_is_wrong(flags: tuple[str, ...], said: str) -> None:
    done = run("--out", "unused", *flags)
    assert done.returncode == 2 and said in done.stderr and len(done.stderr.strip().splitlines()) == 1
