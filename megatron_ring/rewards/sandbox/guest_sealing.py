"""How a run is closed off from all others: name spaces and files of its own, resource limits, no capabilities, a filter of
system calls.

Only the standard library, no package imports.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import struct
from typing import Any

EMPTY = "/empty"  # a directory of the sandbox

_NEWNS, _NEWUSER, _NEWPID = 0x00020000, 0x10000000, 0x20000000
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_BIND, _MS_REC, _MS_PRIVATE = 2, 4, 8, 0x1000, 0x4000, 0x40000
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_FILTER = 38, 22, 2
_MACHINE = os.uname().machine
_SYS_CAPSET = {"x86_64": 126, "aarch64": 91}.get(_MACHINE, -1)
_SYS_CLONE = {"x86_64": 56, "aarch64": 220}.get(_MACHINE, -1)
_libc = ctypes.CDLL(None, use_errno=True)
_libc_locked = ctypes.PyDLL(None, use_errno=True)  # holds the interpreter's lock during a call
_CLONE_FLAGS = ctypes.c_ulong(_NEWUSER | _NEWNS | _NEWPID | signal.SIGCHLD)
_NO_CAPABILITIES = struct.pack("=Ii", 0x20080522, 0), bytes(24)


def _check(result: int, what: str) -> None:
    if result != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")


def _mount(kind: str, target: str, flags: int, options: str = "") -> None:
    result = _libc.mount(kind.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), options.encode())
    _check(result, f"mount {target}")


def write_file(path: str, text: str) -> None:
    """Write to a file of the kernel's."""
    descriptor = os.open(path, os.O_WRONLY)
    os.write(descriptor, text.encode())
    os.close(descriptor)


def clone() -> int:
    """`os.fork`, but the child is in new user, mount and pid name spaces, pid 1 of the last. Without other threads only."""
    # One call makes them and the process: `unshare` would need a second fork.
    ctypes.pythonapi.PyOS_BeforeFork()
    pid = _libc_locked.syscall(_SYS_CLONE, _CLONE_FLAGS, 0, 0, 0, 0)
    if pid == 0:
        ctypes.pythonapi.PyOS_AfterFork_Child()
        return 0
    ctypes.pythonapi.PyOS_AfterFork_Parent()
    if pid < 0:
        _check(-1, "clone")
    return int(pid)


def own_namespaces(uid: int, gid: int) -> None:
    """Make this process somebody in its user name space (the numbers stay), and its mounts its own."""
    write_file("/proc/self/setgroups", "deny")
    write_file("/proc/self/uid_map", f"{uid} {uid} 1")
    write_file("/proc/self/gid_map", f"{gid} {gid} 1")
    _check(_libc.mount(None, b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None), "mount /")


def private_files(limits: dict[str, Any]) -> None:
    """An empty work directory of bounded size and number of files; no /proc."""
    size, files = limits["work_bytes"], limits["work_files"]
    _mount("tmpfs", "/tmp", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC, f"size={size},nr_inodes={files},mode=0700")
    # A file system of its own would cost more than all else here.
    _check(_libc.mount(EMPTY.encode(), b"/proc", None, ctypes.c_ulong(_MS_BIND), None), "mount /proc")
    os.chdir("/tmp")


def limit(limits: dict[str, Any]) -> None:
    """The run's resource limits, of which those on processes count in this user name space only."""
    for name, value in (
        ("RLIMIT_CPU", limits["cpu_seconds"]),
        ("RLIMIT_AS", limits["memory_bytes"]),
        ("RLIMIT_DATA", limits["data_bytes"]),
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


class Filter:
    """A filter of system calls, ready to be installed: `program` is an array of `struct sock_filter`."""

    def __init__(self, program: bytes) -> None:
        self._program = ctypes.create_string_buffer(program, len(program))
        self._described = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(self._program))

    def seal(self) -> None:
        """Give up all capabilities and install the filter, for good."""
        _check(_libc.syscall(_SYS_CAPSET, *_NO_CAPABILITIES), "capset")
        _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
        _check(_libc.prctl(_PR_SET_SECCOMP, _SECCOMP_FILTER, self._described), "seccomp")
