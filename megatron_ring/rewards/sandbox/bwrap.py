"""The bubblewrap command around one run: name spaces, what is visible, and who runs it.

As root the whole command runs as an unused account: the kernel ignores limits on processes for root, and whatever
escaped would be nobody.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from megatron_ring.errors import UserError
from megatron_ring.rewards.sandbox.images import LIBRARIES, Limits, python_interpreter
from megatron_ring.rewards.sandbox.seccomp import build_filter

UNSAFE_VARIABLE = "MEGATRON_RING_UNSAFE_CODE"
HELP = "apt-get install bubblewrap"
ACCOUNT = 64_123  # no account has this number on Debian, Ubuntu or Fedora
INSIDE_ACCOUNT = "1000"
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "HOME": "/tmp", "TMPDIR": "/tmp", "LANG": "C.UTF-8", "PYTHONHASHSEED": "0"}

_NAMESPACES = ("user", "pid", "ipc", "net", "uts")
# Threads of numerical libraries would count as processes.
_PYTHON_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def environment() -> dict[str, str]:
    """All that a run sees of the environment: nothing of ours."""
    return ENVIRONMENT | _PYTHON_ENVIRONMENT


def account() -> dict[str, Any]:
    """Arguments for `Popen` that drop root; nothing where there is none to drop."""
    return {"user": ACCOUNT, "group": ACCOUNT, "extra_groups": []} if os.geteuid() == 0 else {}


def confinement(
    binds: Iterable[str], limits: Limits, *, own_proc: bool = False, box: str = "", writable: bool = False
) -> list[str]:
    """The bwrap command up to the program: what it sees and where it starts."""
    command = [_bwrap(), *(f"--unshare-{kind}" for kind in _NAMESPACES), "--unshare-cgroup-try"]
    command += ["--die-with-parent", "--new-session", "--cap-drop", "ALL", "--hostname", "sandbox"]
    command += ["--uid", INSIDE_ACCOUNT, "--gid", INSIDE_ACCOUNT]
    for path in dict.fromkeys(binds):
        if os.path.islink(path) and os.path.dirname(path) == "/":
            command += ["--symlink", os.readlink(path), path]
        elif os.path.exists(path):
            command += ["--ro-bind", path, path]
    for device in ("null", "random", "urandom"):
        command += ["--dev-bind", f"/dev/{device}", f"/dev/{device}"]
    command += ["--symlink", "/proc/self/fd", "/dev/fd", "--symlink", "/proc/self/fd/0", "/dev/stdin"]
    command += ["--proc", "/proc"] if own_proc else ["--dir", "/proc"]
    command += ["--size", str(limits.work_bytes), "--perms", "0700", "--tmpfs", "/tmp"]
    if box:
        command += ["--bind" if writable else "--ro-bind", box, "/box"]
    return [*command, "--chdir", "/tmp"]


def limited(limits: Limits, command: Iterable[str]) -> list[str]:
    """A command under resource limits, set inside the sandbox: there the count of processes is its own."""
    values = {
        "cpu": limits.cpu_seconds,
        "as": limits.memory_bytes,
        "nproc": limits.processes,
        "fsize": limits.file_bytes,
        "nofile": limits.open_files,
        "core": 0,
        "memlock": 0,
    }
    options = [f"--{name}={value}:{value}" for name, value in values.items() if value is not None]
    return ["/usr/bin/prlimit", *options, "--stack=67108864:", "--", *command]


@contextmanager
def memory_file(content: bytes) -> Iterator[int]:
    """A descriptor that bwrap can read `content` from."""
    descriptor = os.memfd_create("sandbox")
    try:
        os.write(descriptor, content)
        os.lseek(descriptor, 0, os.SEEK_SET)
        yield descriptor
    finally:
        os.close(descriptor)


def unsafe_allowed() -> bool:
    """Whether the user asked to run solutions without a sandbox where there is none."""
    return os.environ.get(UNSAFE_VARIABLE) == "1"


@functools.cache
def isolated() -> bool:
    """Whether runs are sandboxed here; False only where that does not work and the user allowed it.

    Raises:
        UserError: bubblewrap is missing or does not work, and running without was not allowed.
    """
    problem = find_problem()
    if problem is None:
        return True
    if not unsafe_allowed():
        raise UserError(f"the code verifier runs programs that a model wrote only in a sandbox, and {problem}: {HELP}")
    print(f"warning: {UNSAFE_VARIABLE}=1: programs run WITHOUT a sandbox ({problem})", file=sys.stderr, flush=True)
    return False


def find_problem() -> str | None:
    """Why bubblewrap cannot be used, or None; one real run decides."""
    if not shutil.which("bwrap"):
        return "bubblewrap is missing"
    python, binds = python_interpreter()
    program = limited(Limits(), [python, "-I", "-c", "print(6 * 7)"])
    try:
        with memory_file(build_filter()) as filter_fd:
            command = confinement((*LIBRARIES, *binds, "/usr/bin/prlimit"), Limits())
            done = subprocess.run(
                [*command, "--remount-ro", "/", "--seccomp", str(filter_fd), "--", *program],
                pass_fds=[filter_fd],
                capture_output=True,
                text=True,
                timeout=60,
                env=environment(),
                stdin=subprocess.DEVNULL,
                **account(),
            )
    except (OSError, subprocess.SubprocessError) as error:
        return f"bubblewrap does not work here ({error})"
    if done.stdout.strip() != "42":
        detail = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        return f"bubblewrap does not work here ({detail})"
    return None


def _bwrap() -> str:
    found = shutil.which("bwrap")
    if found is None:
        raise UserError(f"bubblewrap is missing: {HELP}")
    return found
