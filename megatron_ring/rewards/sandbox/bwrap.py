"""The bubblewrap command around one run: name spaces, what is visible, and who runs it.

As root the whole command runs as an unused account: the kernel ignores limits on processes for root, and whatever
escaped would be nobody.
"""

from __future__ import annotations

import fcntl
import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

from megatron_ring.errors import UserError
from megatron_ring.rewards.sandbox.images import LIBRARIES, Limits, python_interpreter
from megatron_ring.rewards.sandbox.seccomp import build_filter

UNSAFE_VARIABLE = "MEGATRON_RING_UNSAFE_CODE"
HELP = "apt-get install bubblewrap"
ACCOUNT = 64_123  # no account has this number on Debian, Ubuntu or Fedora
INSIDE_ACCOUNT = "1000"
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "HOME": "/tmp", "TMPDIR": "/tmp", "LANG": "C.UTF-8", "PYTHONHASHSEED": "0"}

Proc = Literal["none", "read", "write"]  # whether a run sees a /proc, of its own processes only

_NAMESPACES = ("user", "pid", "ipc", "net", "uts")
# Threads of numerical libraries would count as processes.
_PYTHON_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def environment() -> dict[str, str]:
    """All that a run sees of the environment: nothing of ours."""
    return ENVIRONMENT | _PYTHON_ENVIRONMENT


def account() -> dict[str, Any]:
    """Arguments for `Popen` that drop root; nothing where there is none to drop."""
    return {"user": ACCOUNT, "group": ACCOUNT, "extra_groups": []} if os.geteuid() == 0 else {}


# As root the first lines need root: it enters the groups, and a score that root has raised cannot be lowered again.
_ENTER = (
    'while [ "$1" != -- ]; do echo 0 >"$1" || exit 125; shift; done; shift; echo 1000 >/proc/self/oom_score_adj; exec "$@"'
)


def entering(command: Iterable[str], groups: Iterable[str] = (), nice: int = 0) -> list[str]:
    """A bwrap command whose process first enters control groups (the files that it writes `0` to), becomes the first that
    the kernel ends where memory is short, and drops root."""
    drop = ["setpriv", f"--reuid={ACCOUNT}", f"--regid={ACCOUNT}", "--clear-groups", "--"] if os.geteuid() == 0 else []
    lower = ["nice", "-n", str(nice)] if nice else []
    return ["/bin/sh", "-c", _ENTER, "sh", *groups, "--", *lower, *drop, *command]


def confinement(
    binds: Iterable[str],
    limits: Limits,
    *,
    proc: Proc = "none",
    box: str = "",
    writable: bool = False,
    stdin: int | None = None,
) -> list[str]:
    """The bwrap command up to the program: what it sees and where it starts. A bind `-PATH` is an empty directory over
    what earlier binds show there, and later ones may fill it. `stdin`: a descriptor that bwrap reads to its end; the
    program finds what it read in the file `/dev/stdin`, and needs no /proc for that."""
    command = [_bwrap(), *(f"--unshare-{kind}" for kind in _NAMESPACES), "--unshare-cgroup-try"]
    # As the first process of its name space a run leaves nothing behind, and no process without its limits is beside it.
    command += ["--as-pid-1", "--die-with-parent", "--new-session", "--cap-drop", "ALL", "--hostname", "sandbox"]
    command += ["--uid", INSIDE_ACCOUNT, "--gid", INSIDE_ACCOUNT]
    hidden = []
    for path in dict.fromkeys(binds):
        if path.startswith("-"):
            if os.path.isdir(path[1:]):
                hidden.append(path[1:])
                command += ["--tmpfs", path[1:]]
        elif os.path.islink(path) and os.path.dirname(path) == "/":
            command += ["--symlink", os.readlink(path), path]
        elif os.path.exists(path):
            command += ["--ro-bind", path, path]
    for device in ("null", "random", "urandom"):
        command += ["--dev-bind", f"/dev/{device}", f"/dev/{device}"]
    command += ["--symlink", "/proc/self/fd", "/dev/fd"]
    if stdin is None:
        command += ["--symlink", "/proc/self/fd/0", "/dev/stdin"]
    else:
        command += ["--ro-bind-data", str(stdin), "/dev/stdin"]
    for path in hidden:
        command += ["--remount-ro", path]
    command += ["--dir", "/proc"] if proc == "none" else ["--proc", "/proc"]
    command += ["--remount-ro", "/proc"] if proc == "read" else []
    if stdin is not None and proc == "none":  # the other names of the same file
        command += ["--dir", "/proc/self/fd", "--symlink", "/dev/stdin", "/proc/self/fd/0"]
    command += ["--size", str(limits.work_bytes), "--perms", "0700", "--tmpfs", "/tmp"]
    if box:
        command += ["--bind" if writable else "--ro-bind", box, "/box"]
    return [*command, "--chdir", "/tmp"]


def limited(limits: Limits, command: Iterable[str]) -> list[str]:
    """A command under resource limits, set inside the sandbox: there the count of processes is its own."""
    values = {
        "cpu": limits.cpu_seconds,
        "as": limits.memory_bytes,
        "data": limits.data_bytes,
        "nproc": limits.processes,
        "fsize": limits.file_bytes,
        "nofile": limits.open_files,
        "core": 0,
        "memlock": 0,
        "msgqueue": 0,
        "sigpending": 256,
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


def input_file(content: bytes) -> int:
    """A descriptor of a file in memory that holds a program's input. Nobody can change it, however it is opened."""
    writable = os.memfd_create("stdin", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        left = memoryview(content)
        while left:
            left = left[os.write(writable, left) :]
        fcntl.fcntl(
            writable, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
        )
        # Opened for reading alone: older kernels map a sealed file that could be written to for nobody.
        return opened_anew(writable)
    finally:
        os.close(writable)


def opened_anew(descriptor: int) -> int:
    """The same file, read from its beginning, at a position of its own."""
    return os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)


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
                entering([*command, "--remount-ro", "/", "--seccomp", str(filter_fd), "--", *program]),
                pass_fds=[filter_fd],
                capture_output=True,
                text=True,
                timeout=60,
                env=environment(),
                stdin=subprocess.DEVNULL,
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
