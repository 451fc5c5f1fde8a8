"""tools/doctor.py, run as users run it: here, and in environments that are broken for real."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SECTIONS = ["Python", "Platform", "What will be used", "Optional accelerators", "Tools", "Default path"]


def doctor(*flags: str, interpreter: tuple[str, ...] = (), **environment: str) -> subprocess.CompletedProcess[str]:
    """Run it; `interpreter` are flags for Python, `environment` replaces variables."""
    command = [sys.executable, *interpreter, str(ROOT / "tools/doctor.py"), *flags]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": "", **environment}
    return subprocess.run(command, capture_output=True, text=True, env=variables, timeout=500, cwd=ROOT)


def examined(done: subprocess.CompletedProcess[str]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The JSON object, checked, and its findings by name."""
    assert done.stderr == "" and done.stdout.count("\n") == 1, (done.stdout, done.stderr)
    report = json.loads(done.stdout)
    assert list(report) == ["works", "breaks", "verdict", "sections"] and list(report["sections"]) == SECTIONS
    findings = [finding for section in report["sections"].values() for finding in section]
    for finding in findings:
        assert list(finding) == ["name", "value", "status", "hint", "needed"] and finding["name"] and finding["value"]
        assert finding["status"] in ("ok", "missing", "broken", "unused")
        assert finding["hint"] or finding["status"] != "missing", finding
        assert "not used yet" not in finding["value"], finding
    needed = [finding["name"] for finding in findings if finding["needed"] and finding["status"] in ("missing", "broken")]
    assert report["breaks"] == needed and report["works"] == (not needed)
    assert done.returncode == (1 if needed else 0)
    return report, {finding["name"]: finding for finding in findings}


def write(folder: Path, files: dict[str, str]) -> str:
    """Stand-ins for installed packages or programs; the folder, for PYTHONPATH or PATH."""
    for name, text in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(0o755)
    return str(folder)


@pytest.mark.slow
def test_this_installation_works() -> None:
    # A shell that torchrun left its variables in must not make the smoke check wait for other processes.
    report, found = examined(doctor("--json", RANK="1", WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT="1"))
    assert report["verdict"] == "The default path works."
    for name in ("Python", "torch", "megatron-core", "math-verify", "antlr4-python3-runtime", "packaging"):
        assert found[name]["status"] == "ok" and found[name]["needed"]
    for name in ("Device", "Communication", "Attention", "Grouped matmul", "Smoke check"):
        assert found[name]["status"] == "ok", found[name]
    assert "forward and backward" in found["Grouped matmul"]["value"]
    for step in ("megatron-core", "ring-tiny", "forward", "all-reduce"):
        assert step in found["Smoke check"]["value"]


def test_the_table_holds_every_section_and_whole_commands() -> None:
    done = doctor("--no-smoke", PATH="")
    assert done.returncode == 0 and done.stderr == ""
    for words in (*SECTIONS, "megatron-core", "Grouped matmul", "left out by --no-smoke"):
        assert words in done.stdout
    assert any(line.split(maxsplit=1) == ["bwrap", "apt-get install bubblewrap"] for line in done.stdout.splitlines())
    assert done.stdout.splitlines()[-1] == "The default path works, as far as looked at without the smoke check."


@pytest.mark.parametrize("flags", [("--json",), ()])
def test_an_interpreter_without_packages(flags: tuple[str, ...]) -> None:
    done = doctor(*flags, interpreter=("-I", "-S"))  # no site-packages: rich and packaging are absent too
    if flags:
        report, found = examined(done)
        assert {"torch", "megatron-core", "rich", "packaging"} <= set(report["breaks"]) and "Python" not in report["breaks"]
        assert found["torch"]["status"] == "missing" and found["torch"]["hint"].startswith("pip install 'torch>=")
        assert found["Smoke check"]["status"] == "unused" and "torch" in found["Smoke check"]["value"]
    else:
        assert done.returncode == 1 and done.stderr == ""
        assert all(section in done.stdout for section in SECTIONS) and "pip install 'torch>=" in done.stdout
        assert done.stdout.splitlines()[-1].startswith("The default path does not work: torch, ")


def test_programs_that_are_absent_and_the_wrong_apex(tmp_path: Path) -> None:
    packages = write(tmp_path, {"apex/__init__.py": "__version__ = '0.9.10.dev0'\n"})
    report, found = examined(doctor("--json", "--no-smoke", PATH="", PYTHONPATH=packages))
    assert report["works"]  # none of them is needed
    for name, package in [("bwrap", "bubblewrap"), ("g++", "g++"), ("javac", "default-jdk-headless"), ("git", "git")]:
        assert found[name]["status"] == "missing" and found[name]["hint"] == f"apt-get install {package}"
    assert found["NVIDIA Apex"]["status"] == "broken" and "another project" in found["NVIDIA Apex"]["value"]
    assert found["NVIDIA Apex"]["hint"].startswith("pip uninstall apex")


def test_what_is_there_but_does_not_work(tmp_path: Path) -> None:
    packages = write(
        tmp_path / "packages",
        {
            "apex/__init__.py": "",
            "apex/optimizers/__init__.py": "",  # NVIDIA's has it
            "amp_C.py": "",
            "megatron_core-0.99.dist-info/METADATA": "Metadata-Version: 2.1\nName: megatron-core\nVersion: 0.99\n",
        },
    )
    refuses = '#!/bin/sh\n[ "$1" = --version ] && echo bubblewrap 0.8.0 && exit\necho "uid map: not permitted" >&2\nexit 1\n'
    programs = write(tmp_path / "programs", {"bwrap": refuses})
    report, found = examined(doctor("--json", "--no-smoke", PATH=programs, PYTHONPATH=packages))
    assert report["breaks"] == ["megatron-core"]
    assert found["megatron-core"]["value"].startswith("0.99 is outside") and "<0.20" in found["megatron-core"]["hint"]
    assert found["NVIDIA Apex"]["status"] == "broken" and "git clone" in found["NVIDIA Apex"]["hint"]
    assert found["NVIDIA Apex"]["value"].startswith("built without fused_weight_gradient_mlp_cuda, ")
    assert found["bwrap"]["status"] == "broken" and "uid map: not permitted" in found["bwrap"]["value"]
    assert found["bwrap"]["hint"]


def test_apex_whose_extensions_do_not_fit_this_torch(tmp_path: Path) -> None:
    broken = "raise ImportError('undefined symbol: stand_in')"
    packages = write(tmp_path, {"amp_C.py": "", "fused_weight_gradient_mlp_cuda.py": broken})
    _, found = examined(doctor("--json", "--no-smoke", PYTHONPATH=packages))
    assert found["NVIDIA Apex"]["status"] == "broken" and "undefined symbol: stand_in" in found["NVIDIA Apex"]["value"]


def test_a_torch_that_ends_its_process(tmp_path: Path) -> None:
    packages = write(tmp_path, {"torch/__init__.py": "import os\nos.kill(os.getpid(), 9)\n"})
    report, found = examined(doctor("--json", "--no-smoke", PYTHONPATH=packages))
    assert report["breaks"] == ["Device", "Attention", "Grouped matmul"]
    assert "ended by signal 9" in found["Device"]["value"]
    assert found["git"]["status"] in ("ok", "missing")  # the rest was still looked at
    assert found["NVIDIA Apex"]["value"] == "not installed; only for --optimizer.apex" and "flash-attn" not in found


@pytest.mark.slow
def test_a_broken_megatron_core(tmp_path: Path) -> None:
    broken = "print('some noise')\nraise ImportError('this\\nis a stand-in')\n"
    packages = write(tmp_path, {"megatron/__init__.py": "", "megatron/core/__init__.py": broken})
    report, found = examined(doctor("--json", PYTHONPATH=packages))
    assert report["breaks"] == ["Smoke check"] and report["verdict"] == "The default path does not work: Smoke check."
    assert found["Smoke check"]["value"].startswith("ImportError: is a stand-in (worked before: libraries ")
    assert "--child smoke" in found["Smoke check"]["hint"]


def test_help_loads_nothing() -> None:
    done = doctor("--help", interpreter=("-X", "importtime"))
    assert done.returncode == 0 and "--no-smoke" in done.stdout and "--json" in done.stdout
    loaded = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "argparse" in loaded and not loaded & {"torch", "megatron", "rich", "packaging", "numpy", "megatron_ring"}
