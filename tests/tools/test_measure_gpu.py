"""The measurements' command lines; a GPU runs them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(ROOT / "tools" / "measure_gpu.sh"), *words]
    known = {
        name: value for name, value in os.environ.items() if name not in ("PRESET", "START", "PROMPTS", "PYTHON", "PORT")
    }
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env=known | {"PYTHON": sys.executable} | environment,
    )


def test_a_dry_run_lists_commands_that_there_are(tmp_path: Path) -> None:
    done = run("--dry-run", str(tmp_path / "out"), PRESET="ring-tiny")
    assert done.returncode == 0 and not (tmp_path / "out").exists()
    parts = [line.split(": ", 1) for line in done.stdout.splitlines()]
    assert [part for part, _ in parts].count("at-once") == 4 and len({part for part, _ in parts}) == 11
    for _, command in parts:
        script = next((word for word in command.split() if word.endswith(".py")), None)
        assert script is None or (ROOT / script).is_file()
        assert script is None or "--preset ring-tiny" in command or "tests/" in command or "doctor" in command
    more = run("--dry-run", str(tmp_path), "sizes", "solve-rates", START="start", PROMPTS="prompts").stdout.splitlines()
    assert len(more) == 5 and all("start" in line and "prompts" in line for line in more)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "OUT"),
        (("--nonsense",), "OUT"),
        (("out", "nope"), "nope"),
        (("out", "sizes"), "START"),
        (("a b", "tail"), "spaces"),
    ],
)
def test_one_line_says_what_is_wrong(words: tuple[str, ...], said: str) -> None:
    done = run(*words)
    assert done.returncode == 2 and said in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert not done.stdout
