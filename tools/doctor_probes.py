"""What doctor.py looks at: probes, each a plain function that yields findings, listed in PROBES at the end."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # `tools` may be a package of someone else's; doctor.py puts this folder on the path
    from tools.doctor_findings import (
        GIB,
        OLDEST_PYTHON,
        ROOT,
        Finding,
        Probe,
        ask,
        installed,
        python_command,
        version_of,
    )
    from tools.doctor_torch import attention, device_and_backend, gpus, grouped_matmul, triton
else:
    from doctor_findings import (
        GIB,
        OLDEST_PYTHON,
        ROOT,
        Finding,
        Probe,
        ask,
        installed,
        python_command,
        version_of,
    )
    from doctor_torch import attention, device_and_backend, gpus, grouped_matmul, triton


def python_version() -> Iterator[Finding]:
    good = sys.version_info[:2] >= OLDEST_PYTHON
    value = f"{platform.python_version()}, {sys.executable}" + ("" if good else "; 3.11 or newer is needed")
    hint = "" if good else "make venv PYTHON=python3.11  (or newer; apt-get install python3 python3-venv)"
    yield Finding("Python", value, "ok" if good else "broken", hint, True)


def requirements() -> tuple[list[str], Finding]:
    """What the project requires, from its installed metadata or, beside this file, from setup.py; and which it was."""
    everything = "pip install -c constraints.txt -e ."
    version = version_of("megatron-ring")
    if version is not None:
        lines = importlib.metadata.requires("megatron-ring") or []
        return [line for line in lines if "extra ==" not in line], Finding("megatron-ring", version, "ok")
    try:
        tree = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))
        keywords = [keyword for node in ast.walk(tree) if isinstance(node, ast.Call) for keyword in node.keywords]
        lines = next(ast.literal_eval(keyword.value) for keyword in keywords if keyword.arg == "install_requires")
    except (OSError, SyntaxError, ValueError, StopIteration):
        return [], Finding("megatron-ring", "not installed, and no setup.py to read", "missing", everything, True)
    value = "not installed, runs from this checkout; ranges read from setup.py"
    return lines, Finding("megatron-ring", value, "missing", f"{everything}  (with every package it needs)")


def packages() -> Iterator[Finding]:
    lines, own = requirements()
    yield own
    for line in lines:
        yield from package(line)


def package(line: str) -> Iterator[Finding]:
    """One required distribution, and what its extras require: another project may have pinned that differently."""
    name = re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0]
    hint = f"pip install '{line.split(';')[0].strip()}'"
    version = version_of(name)
    if version is None:
        yield Finding(name, "not installed", "missing", hint, True)
        return
    try:
        from packaging.requirements import Requirement
    except ImportError:
        yield Finding(name, f"{version} (range not checked: packaging is missing)", "ok", needed=True)
        return
    requirement = Requirement(line)
    good = requirement.specifier.contains(version, prereleases=True)
    value = f"{version} ({requirement.specifier or 'any'})" if good else f"{version} is outside {requirement.specifier}"
    yield Finding(name, value, "ok" if good else "broken", "" if good else hint, True)
    for text in importlib.metadata.requires(name) or [] if requirement.extras else []:
        marker = Requirement(text).marker
        if marker and not marker.evaluate({"extra": ""}) and any(marker.evaluate({"extra": e}) for e in requirement.extras):
            yield from package(text)


def cgroup_values(controller: str, new: str, old: str) -> Iterator[str]:
    """Contents of a limit's file in this process's control groups and their parents: `new` in v2, `old` in v1."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = Path("/sys/fs/cgroup") / controllers
        here = top / path.lstrip("/")
        for folder in (here, *here.parents):
            file = folder / (old if controllers else new)
            if top in (folder, *folder.parents) and file.is_file():
                yield file.read_text().strip()


def cpu() -> Iterator[Finding]:
    cores = float(len(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else float(os.cpu_count() or 1)
    if Path("/proc/self/cgroup").is_file():
        for value in cgroup_values("cpu", "cpu.max", "cpu.cfs_quota_us"):  # v1's period is 100,000 µs, as v2's by default
            quota, period = [*value.split(), "100000"][:2]
            if quota.isdigit():
                cores = min(cores, int(quota) / int(period))
    yield Finding("CPU", f"{cores:g} of {os.cpu_count()} cores usable, {platform.machine()}", "ok")


def memory() -> Iterator[Finding]:
    if not Path("/proc/meminfo").is_file():
        yield Finding("Memory", "not known on this system", "unused")
        return
    table = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    total, free = (int(table[key].split()[0]) * 1024 for key in ("MemTotal", "MemAvailable"))
    limits = [int(v) for v in cgroup_values("memory", "memory.max", "memory.limit_in_bytes") if v.isdigit()]
    limit = min(limits, default=total)
    held = f", limited to {limit / GIB:.1f} GiB by the control group" if limit < total else ""
    yield Finding("Memory", f"{total / GIB:.1f} GiB, {free / GIB:.1f} GiB free{held}", "ok")


def disk() -> Iterator[Finding]:
    free = shutil.disk_usage(os.getcwd()).free
    full = free < GIB
    hint = "give --run-dir on another disk" if full else ""
    yield Finding("Disk here", f"{free / GIB:.1f} GiB free", "broken" if full else "ok", hint)


def accelerator(name: str, version: str, modules: tuple[str, ...], flag: str, hint: str) -> Finding:
    """An optional library that is there; `flag` is what asks for it, `modules` are what it then imports."""
    _, wrong = ask(python_command("-c", f"import torch, {', '.join(modules)}"), 120.0)  # its libraries come through torch
    if wrong:
        return Finding(name, f"{version}, but it cannot be imported: {wrong}", "broken", hint)
    return Finding(name, f"{version}; with {flag}", "ok")


def transformer_engine() -> Iterator[Finding]:
    name, flag = "Transformer Engine", "--layer-impl te"
    hint = "pip install --no-build-isolation -e '.[te]'"
    if not installed("transformer_engine"):
        yield Finding(name, f"not installed; only for {flag}", "unused", hint)
        return
    version = version_of("transformer-engine") or "of no known version"
    yield accelerator(name, version, ("transformer_engine.pytorch",), flag, hint)


def apex() -> Iterator[Finding]:
    """NVIDIA's Apex, of which the two extensions are used. PyPI's package of that name is another project."""
    name, flag, extensions = "NVIDIA Apex", "--optimizer.apex", ("amp_C", "fused_weight_gradient_mlp_cuda")
    build = "APEX_CPP_EXT=1 APEX_CUDA_EXT=1 pip install --no-build-isolation ./apex"
    source = f"git clone https://github.com/NVIDIA/apex && {build}"
    spec = importlib.util.find_spec("apex")
    folders = [Path(folder) for folder in (spec.submodule_search_locations or [] if spec else [])]
    absent = [extension for extension in extensions if not installed(extension)]
    if not absent:
        yield accelerator(name, version_of("apex") or "of no known version", extensions, flag, source)
    elif any((folder / "optimizers").is_dir() for folder in folders) or len(absent) < len(extensions):
        yield Finding(name, f"built without {' and '.join(absent)}, which {flag} wants", "broken", source)
    elif spec:
        value = f"another project of that name (PyPI's), and not what {flag} wants"
        yield Finding(name, value, "broken", f"pip uninstall apex  (to have NVIDIA's: {source})")
    else:
        yield Finding(name, f"not installed; only for {flag}", "unused", source)


def tool(command: str, flag: str, debian: str, purpose: str) -> Finding:
    """A program on PATH, with the first line that it says of its version."""
    if not shutil.which(command):
        return Finding(command, f"not on PATH ({purpose})", "missing", f"apt-get install {debian}")
    output, wrong = ask([command, flag])
    if wrong:
        return Finding(command, f"`{command} {flag}` fails: {wrong}", "broken", f"apt-get install --reinstall {debian}")
    return Finding(command, f"{(output.strip().splitlines() or ['version not known'])[0]} ({purpose})", "ok")


def bubblewrap() -> Iterator[Finding]:
    found = tool("bwrap", "--version", "bubblewrap", "isolates programs that are verified")
    if found.status == "ok":
        _, wrong = ask(["bwrap", "--ro-bind", "/", "/", "--unshare-all", "true"])
        if wrong:
            # Kernels and containers that forbid user namespaces; Ubuntu 24.04 does by AppArmor.
            hint = "sysctl -w kernel.unprivileged_userns_clone=1 kernel.apparmor_restrict_unprivileged_userns=0"
            hint += "  (as root on the host; in Docker: --security-opt seccomp=unconfined)"
            found = Finding("bwrap", f"{found.value}, but a sandbox does not start: {wrong}", "broken", hint)
    yield found


def programs() -> Iterator[Finding]:
    yield tool("g++", "--version", "g++", "verifies C++ answers")
    for command in ("java", "javac"):
        yield tool(command, "-version", "default-jdk-headless", "verifies Java answers")
    yield tool("git", "--version", "git", "for development")


PROBES = (
    Probe("Python", "Python", python_version, needed=True),
    Probe("Python", "Packages", packages, needed=True),
    Probe("Platform", "CPU", cpu),
    Probe("Platform", "Memory", memory),
    Probe("Platform", "Disk here", disk),
    Probe("Platform", "GPU", gpus, in_child=True),
    Probe("What will be used", "Device", device_and_backend, in_child=True, needed=True),
    Probe("What will be used", "Attention", attention, in_child=True, needed=True),
    Probe("What will be used", "Grouped matmul", grouped_matmul, in_child=True, needed=True),
    Probe("What will be used", "Triton", triton, in_child=True),
    Probe("Optional accelerators", "Transformer Engine", transformer_engine),
    Probe("Optional accelerators", "NVIDIA Apex", apex),
    Probe("Tools", "bwrap", bubblewrap),
    Probe("Tools", "Programs", programs),
)
