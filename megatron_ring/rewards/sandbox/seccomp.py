"""A seccomp filter built by hand: a classic BPF program that refuses the system calls no solution needs.

The calls refused are those that reach other processes, other name spaces, the kernel's own interfaces or the network.
They fail with EPERM, so that a run-time library that merely tries one goes on. Everything else is allowed: the name
spaces and limits around the process bound what it can do.
"""

from __future__ import annotations

import platform
import struct

from megatron_ring.errors import UserError

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_EPERM, _ENOSYS = 1, 38
_NUMBER_AT, _ARCH_AT, _FIRST_ARGUMENT_AT = 0, 4, 16
# CLONE_NEW{CGROUP,UTS,IPC,USER,PID,NET,NS}
_NAMESPACE_FLAGS = 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000 | 0x00020000
_X32_BIT = 0x40000000

# Name → number on x86_64, number on aarch64 (None: the architecture has no such call).
# fmt: off
_REFUSED: dict[str, tuple[int, int | None]] = {
    # other processes and kernel objects
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "pidfd_getfd": (438, 438), "process_madvise": (440, 440), "perf_event_open": (298, 241), "bpf": (321, 280),
    "userfaultfd": (323, 282), "io_uring_setup": (425, 425), "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427), "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
    # memory outside the address space's limit and the work directory's; pages that a pipe keeps
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "shmget": (29, 194), "shmat": (30, 196),
    "shmctl": (31, 195), "semget": (64, 190), "semop": (65, 193), "semctl": (66, 191), "semtimedop": (220, 192),
    "msgget": (68, 186), "msgsnd": (69, 189), "msgrcv": (70, 188), "msgctl": (71, 187), "mq_open": (240, 180),
    "move_pages": (279, 239), "migrate_pages": (256, 238), "set_mempolicy": (238, 237), "mbind": (237, 235),
    "set_mempolicy_home_node": (450, 450), "vmsplice": (278, 75), "splice": (275, 76), "tee": (276, 77),
    "mq_unlink": (241, 181), "remap_file_pages": (216, 234),
    # a share of the processors that is not for it to choose, and a way to die slowly
    "sched_setparam": (142, 118), "sched_setscheduler": (144, 119), "sched_setattr": (314, 274),
    "sched_setaffinity": (203, 122), "setpriority": (141, 140), "ioprio_set": (251, 30),
    # kernel objects of which a user has few: one run could take them all from its neighbours
    "inotify_init": (253, None), "inotify_init1": (294, 26), "fanotify_mark": (301, 263),
    # name spaces and mounts
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41),
    "chroot": (161, 51), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
    "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442),
    "open_by_handle_at": (304, 265), "name_to_handle_at": (303, 264), "fanotify_init": (300, 262),
    # the network; socketpair stays, event loops use it, but not with larger buffers than the kernel's default
    "setsockopt": (54, 208), "socket": (41, 198), "connect": (42, 203), "bind": (49, 200), "listen": (50, 201),
    # the machine
    "kexec_load": (246, 104), "kexec_file_load": (320, 294), "init_module": (175, 105), "finit_module": (313, 273),
    "delete_module": (176, 106), "reboot": (169, 142), "swapon": (167, 224), "swapoff": (168, 225),
    "acct": (163, 89), "syslog": (103, 116), "quotactl": (179, 60), "quotactl_fd": (443, 443), "iopl": (172, None),
    "ioperm": (173, None), "modify_ldt": (154, None), "personality": (135, 92), "vhangup": (153, 58),
    "settimeofday": (164, 170), "clock_settime": (227, 112), "adjtimex": (159, 171), "clock_adjtime": (305, 266),
    "sethostname": (170, 161), "setdomainname": (171, 162), "lookup_dcookie": (212, 18),
}
# fmt: on
_ARCHITECTURES = {"x86_64": (0xC000003E, 0, 56), "aarch64": (0xC00000B7, 1, 220)}  # audit name, column, clone
_CLONE3 = 435
_MOST_CALLS = 512  # above all numbers named here


def build_filter(machine: str | None = None) -> bytes:
    """The program as an array of `struct sock_filter`, for `bwrap --seccomp` or `prctl(PR_SET_SECCOMP)`.

    Raises:
        UserError: the processor's system calls are not known here.
    """
    machine = machine or platform.machine()
    if machine not in _ARCHITECTURES:
        raise UserError(f"the code sandbox knows the system calls of x86_64 and aarch64, not of {machine}")
    audit, column, clone = _ARCHITECTURES[machine]
    refuse = [_step(_RETURN, _ERRNO | _EPERM)]
    verdicts = {numbers[column]: refuse for numbers in _REFUSED.values()}
    # clone3 passes its flags in memory, where a filter cannot look; glibc falls back to clone on ENOSYS.
    verdicts[_CLONE3] = [_step(_RETURN, _ERRNO | _ENOSYS)]
    verdicts[clone] = [
        _step(_LOAD, _FIRST_ARGUMENT_AT),
        _step(_ANY_BIT, _NAMESPACE_FLAGS, 0, 1),
        *refuse,
        _step(_RETURN, _ALLOW),
    ]
    ranges = [(0, [_step(_RETURN, _ALLOW)])]
    for number in range(_MOST_CALLS):
        verdict = verdicts.get(number, ranges[0][1])
        if verdict is not ranges[-1][1]:
            ranges.append((number, verdict))
    if machine == "x86_64":  # the x32 calls are the same calls under other numbers
        ranges.append((_X32_BIT, refuse))
    program = [
        _step(_LOAD, _ARCH_AT),
        _step(_EQUAL, audit, 1, 0),
        _step(_RETURN, _KILL),
        _step(_LOAD, _NUMBER_AT),
        *_search(ranges),
    ]
    return b"".join(program)


def _search(ranges: list[tuple[int, list[bytes]]]) -> list[bytes]:
    """Find the verdict of the range that holds the number. Ranges are (first number, verdict), in order.

    It halves them: the kernel tries a new filter with every call there is, and each run has a new one.
    """
    if len(ranges) == 1:
        return ranges[0][1]
    middle = len(ranges) // 2
    below = _search(ranges[:middle])
    return [_step(_AT_LEAST, ranges[middle][0], len(below), 0), *below, *_search(ranges[middle:])]


def _step(code: int, operand: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, operand)
