"""The warm interpreter inside bubblewrap: forks once per run, each fork sealed off before it sees the solution.

Modes (first argument):
    zygote FD     serve requests on the socket FD: one datagram per run, with four descriptors: the run's control
                  socket, stdin, stdout, stderr. The control socket carries the run's spec (a length, then JSON) and
                  later its result; when its other end closes, the run is killed.
    once FILE     run one job from the spec in FILE, where the sandbox around this process belongs to it alone.

Per run there are two processes. The keeper makes new user, mount and pid name spaces, starts the run as pid 1 of the new
pid space, and kills it at its limit: whatever it left behind dies with it. The run gets an empty work directory of its
own, hides /proc, and gives up every capability before any code of the solution is read. The other name spaces are
bubblewrap's, one for all runs of a zygote; the calls that reach through them (sockets, System V and POSIX queues, the
host name) are refused by the filter. The zygote itself never runs a solution, so that nothing one run does to its
modules can reach the next.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import resource
import select
import signal
import socket
import struct
import sys
import time
from typing import Any

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import guest_jobs

# What solutions import most: loaded once here, shared by every fork.
PRELOADED = (
    "array", "bisect", "collections", "copy", "datetime", "decimal", "fractions", "functools", "heapq", "io", "itertools",
    "math", "operator", "queue", "random", "re", "statistics", "string", "typing",
)  # fmt: skip
SPEC_HEADER = struct.Struct("!Q")

_NEWNS, _NEWUSER, _NEWPID = 0x00020000, 0x10000000, 0x20000000
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REC, _MS_PRIVATE = 1, 2, 4, 8, 0x4000, 0x40000
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_FILTER = 38, 22, 2
_SYS_CAPSET = {"x86_64": 126, "aarch64": 91}
_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")


def _mount(kind: str, target: str, flags: int, options: str = "") -> None:
    result = _libc.mount(kind.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), options.encode())
    _check(result, f"mount {target}")


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def enter_namespaces() -> None:
    """New name spaces for this process's next child; the user and group keep their numbers."""
    uid, gid = os.getuid(), os.getgid()
    _check(_libc.unshare(_NEWUSER | _NEWNS | _NEWPID), "unshare")
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/uid_map", f"{uid} {uid} 1")
    _write("/proc/self/gid_map", f"{gid} {gid} 1")
    _check(_libc.mount(None, b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None), "mount /")


def private_files(limits: dict[str, Any]) -> None:
    """An empty work directory of bounded size and number of files; no /proc."""
    size, files = limits["work_bytes"], limits["work_files"]
    _mount("tmpfs", "/tmp", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC, f"size={size},nr_inodes={files},mode=0700")
    _mount("tmpfs", "/proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC | _MS_RDONLY, "size=4096,nr_inodes=1")
    os.chdir("/tmp")


def limit(limits: dict[str, Any]) -> None:
    """The run's resource limits, of which those on processes count in this user name space only."""
    for name, value in (
        ("RLIMIT_CPU", limits["cpu_seconds"]),
        ("RLIMIT_AS", limits["memory_bytes"]),
        ("RLIMIT_NPROC", limits["processes"]),
        ("RLIMIT_FSIZE", limits["file_bytes"]),
        ("RLIMIT_NOFILE", limits["open_files"]),
        ("RLIMIT_CORE", 0),
        ("RLIMIT_MEMLOCK", 0),
        ("RLIMIT_MSGQUEUE", 0),
        ("RLIMIT_SIGPENDING", 256),
    ):
        if value is not None:
            number = getattr(resource, name)
            hard = resource.getrlimit(number)[1]
            value = value if hard == resource.RLIM_INFINITY else min(value, hard)
            # One second between SIGXCPU and SIGKILL would be one second more of work.
            resource.setrlimit(number, (value, value))


def seal(program: bytes) -> None:
    """Give up all capabilities and install the system call filter, for good."""
    header = struct.pack("=Ii", 0x20080522, 0)
    _check(_libc.syscall(_SYS_CAPSET[os.uname().machine], header, struct.pack("=6I", *[0] * 6)), "capset")
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    buffer = ctypes.create_string_buffer(program, len(program))
    descriptor = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(buffer))
    _check(_libc.prctl(_PR_SET_SECCOMP, _SECCOMP_FILTER, descriptor), "seccomp")


def _run(spec: dict[str, Any], standard: list[int], program: bytes) -> None:
    """The run itself: seal this process, then execute the job. Never returns."""
    try:
        private_files(spec["limits"])
        os.setsid()
        for target, source in enumerate(standard):
            os.dup2(source, target)
        os.closerange(3, 1024)
        limit(spec["limits"])
        seal(program)
    except BaseException as error:
        os.write(2, f"the sandbox could not be set up: {error}\n".encode())
        os._exit(125)
    sys.modules["random"].seed()
    guest_jobs.run_job(spec)


def _receive(control: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = control.recv(min(size - len(data), 1 << 20))
        if not part:
            os._exit(0)
        data += part
    return bytes(data)


def _keep(control: socket.socket, standard: list[int], program: bytes) -> None:
    """Start one run, wait for it, kill it at its limit or when nobody wants it any more, and report."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    (size,) = SPEC_HEADER.unpack(_receive(control, SPEC_HEADER.size))
    spec = json.loads(_receive(control, size))
    _write("/proc/self/oom_score_adj", "1000")
    enter_namespaces()
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        _run(spec, standard, program)
    for descriptor in standard:
        os.close(descriptor)
    watched = os.pidfd_open(child)
    poll = select.poll()
    poll.register(watched, select.POLLIN)
    poll.register(control, select.POLLIN)
    events = poll.poll(spec["seconds"] * 1000)
    ended = any(descriptor == watched for descriptor, _ in events)
    if not ended:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    result = {"status": status, "timed_out": not events, "seconds": time.monotonic() - started}
    control.sendall(json.dumps(result).encode())


def serve(requests: socket.socket) -> None:
    """Fork a keeper per request until the socket closes."""
    for name in PRELOADED:
        __import__(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    program = b""
    gc.freeze()
    while True:
        message, descriptors, _, _ = socket.recv_fds(requests, 1 << 16, 4)
        if not message:
            return
        if not descriptors:
            program = message
            requests.send(b"ready")
            continue
        if os.fork() == 0:
            try:
                requests.close()
                _keep(socket.socket(fileno=descriptors[0]), descriptors[1:], program)
            except BaseException as error:
                os.write(descriptors[3], f"the sandbox could not be set up: {error}\n".encode())
            os._exit(0)
        for descriptor in descriptors:
            os.close(descriptor)


def main() -> None:
    """Command line of the sandbox."""
    if sys.argv[1] == "zygote":
        serve(socket.socket(fileno=int(sys.argv[2])))
        return
    with open(sys.argv[2], encoding="utf-8") as file:
        spec = json.load(file)
    limit(spec["limits"])
    guest_jobs.run_job(spec)


if __name__ == "__main__":
    main()
