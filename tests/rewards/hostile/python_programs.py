# ruff: noqa: E501
"""Hostile Python programs: each prints ESCAPED when its attack works, `held` when it does not, or is ended.

name → (what the reason must match, seconds, source)
"""

from __future__ import annotations

HELD, TIME, ENDED = "held", "time limit", "time limit|exit status|killed|output"
OUTPUT = "bytes of output"


def attempt(body: str, errors: str = "Exception") -> str:
    """A program that escaped if its body raises nothing."""
    lines = "\n".join("    " + line for line in body.strip().splitlines())
    return f"import os, sys, ctypes, socket\ntry:\n{lines}\n    print('ESCAPED')\nexcept {errors}:\n    print('held')\n"


def system_call(number: int, *arguments: str) -> str:
    """A program that makes one system call by its x86_64 number; it is held only by EPERM or ENOSYS, no other failure."""
    call = ", ".join([str(number), *arguments])
    result = f"ctypes.CDLL(None, use_errno=True).syscall({call})"
    return attempt(f"result = {result}\nassert result != -1 or ctypes.get_errno() not in (1, 38)")


def visible(expression: str) -> str:
    """A program that escaped if the expression is true."""
    return (
        f"import os, sys, gc, glob\ntry:\n    found = {expression}\nexcept OSError:\n    found = False\n"
        "print('ESCAPED' if found else 'held')\n"
    )


PROGRAMS: dict[str, tuple[str, float, str]] = {
    # exhaustion
    "fork bomb": (ENDED, 2.0, "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass\n"),
    "thread bomb": (
        ENDED + "|held", 2.0,
        "import threading, time\ntry:\n    while True:\n        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
        "except RuntimeError:\n    print('held')\n",
    ),
    "memory at once": (HELD, 10.0, attempt("bytearray(8 << 30)", "MemoryError")),
    "memory by pieces": (
        "held|exit status|killed", 10.0, "pieces = []\ntry:\n    while True:\n        pieces.append(bytearray(64 << 20))\n"
        "except MemoryError:\n    pieces.clear()\n    print('held')\n",
    ),
    "memory map": (HELD, 10.0, "import mmap\n" + attempt("mmap.mmap(-1, 16 << 30)")),
    "integer": (ENDED, 2.0, "x = 9 ** 9 ** 9\nprint('ESCAPED')"),
    "deep recursion": (ENDED, 2.0, "import sys\nsys.setrecursionlimit(10**9)\nf = lambda n: f(n + 1) + 1\nf(0)\n"),
    "regular expression": (TIME, 1.5, "import re\nre.match('(a+)+$', 'a' * 64 + 'b')\n"),
    "disk one file": (HELD, 10.0, attempt("f = open('/tmp/x', 'wb')\nfor _ in range(64):\n    f.write(bytes(1 << 20))\nf.flush()")),
    "disk many files": (
        HELD, 10.0, attempt("for i in range(64):\n    open(f'/tmp/{i}', 'wb').write(bytes(1 << 20))"),
    ),
    "inodes": (HELD, 10.0, attempt("for i in range(100_000):\n    open(f'/tmp/{i}', 'w').close()")),
    "descriptors": (HELD, 10.0, attempt("files = [open('/dev/null') for _ in range(10_000)]")),
    "output flood": (OUTPUT, 10.0, "while True:\n    print('x' * 65536)\n"),
    "error flood": (OUTPUT, 10.0, "import sys\nwhile True:\n    sys.stderr.write('x' * 65536)\n"),
    "flood that ignores SIGPIPE": (
        OUTPUT, 10.0, "import os, signal\nsignal.signal(signal.SIGPIPE, signal.SIG_IGN)\nwhile True:\n"
        "    try:\n        os.write(1, b'x' * 65536)\n    except OSError:\n        pass\n",
    ),
    "memfd": (HELD, 10.0, attempt("os.memfd_create('x')")),
    # never ending
    "sleep": (TIME, 1.0, "import time\ntime.sleep(1000)\n"),
    "busy loop": (TIME, 1.0, "while True:\n    pass\n"),
    "reads for ever": (TIME, 1.0, "import os\nr, w = os.pipe()\nos.read(r, 1)\n"),
    "ignores every signal": (
        TIME, 1.0, "import signal, time\nfor n in range(1, 65):\n    try:\n        signal.signal(n, signal.SIG_IGN)\n"
        "    except (OSError, ValueError):\n        pass\nwhile True:\n    try:\n        time.sleep(100)\n"
        "    except BaseException:\n        pass\n",
    ),
    "alarm storm": (
        TIME, 1.0, "import signal, time\nsignal.signal(signal.SIGALRM, lambda *_: None)\n"
        "signal.setitimer(signal.ITIMER_REAL, 1e-4, 1e-4)\nwhile True:\n    time.sleep(1)\n",
    ),
    "stops itself": (ENDED, 1.0, "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)\nimport time\ntime.sleep(99)\n"),
    "hangs in an exit handler": (TIME, 1.0, "import atexit, time\natexit.register(time.sleep, 100)\n"),
    "hangs in a thread": (TIME, 1.0, "import threading, time\nthreading.Thread(target=time.sleep, args=(100,)).start()\n"),
    "kills all": ("held|ESCAP|exit|killed|''", 10.0, "import os, signal\ntry:\n    os.kill(-1, signal.SIGKILL)\nexcept OSError:\n    pass\n"
                  "print('held')\n"),
    "kills the parent": ("held|exit|killed", 10.0, "import os, signal\ntry:\n    os.kill(os.getppid(), signal.SIGKILL)\n"
                         "except OSError:\n    pass\nprint('held')\n"),
    # daemons
    "daemon": (
        "printed ''", 10.0, "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        time.sleep(1)\n"
        "        os.write(1, b'ESCAPED')\n        time.sleep(1000)\n    os._exit(0)\nos.wait()\n",
    ),
    "child that holds stdout": ("printed ''", 10.0, "import os, time\nif os.fork() == 0:\n    time.sleep(1000)\n"),
    # other processes and the kernel
    "ptrace": (HELD, 10.0, system_call(101, "0", "0", "0", "0")),
    "process_vm_readv": (HELD, 10.0, system_call(310, "os.getppid()", "0", "0", "0", "0", "0")),
    "keyctl": (HELD, 10.0, system_call(250, "0", "-3", "1")),
    "bpf": (HELD, 10.0, system_call(321, "0", "0", "0")),
    "perf_event_open": (HELD, 10.0, system_call(298, "0", "0", "-1", "-1", "0")),
    "userfaultfd": (HELD, 10.0, system_call(323, "1")),
    "io_uring": (HELD, 10.0, system_call(425, "8", "ctypes.create_string_buffer(256)")),
    "unshare user": (HELD, 10.0, system_call(272, "0x10000000")),
    "clone new user": (HELD, 10.0, system_call(56, "0x10000011", "0", "0", "0", "0")),
    "clone3": (HELD, 10.0, system_call(435, "ctypes.create_string_buffer(88)", "88")),
    "setns": (HELD, 10.0, system_call(308, "0", "0")),
    "kexec": (HELD, 10.0, system_call(246, "0", "0", "0", "0")),
    "mount tmpfs": (HELD, 10.0, system_call(165, "b'none'", "b'/tmp'", "b'tmpfs'", "0", "0")),
    "umount proc": (HELD, 10.0, system_call(166, "b'/proc'", "2")),
    "chroot": (HELD, 10.0, attempt("os.chroot('/tmp')")),
    "x32 ptrace": (HELD, 10.0, system_call(0x40000000 + 521, "0", "0", "0", "0")),
    "set uid 0": (HELD, 10.0, attempt("os.setuid(0)")),
    "raise limits": (HELD, 10.0, attempt("import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))")),
    "raise process limit": (HELD, 10.0, attempt("import resource\nresource.setrlimit(resource.RLIMIT_NPROC, (9999, 9999))")),
    # files
    "proc of others": (HELD, 10.0, visible("glob.glob('/proc/[0-9]*')")),
    "proc self mem": (HELD, 10.0, visible("os.path.exists('/proc/self/mem')")),
    "host passwd": (HELD, 10.0, visible("os.path.exists('/etc/passwd') or os.path.exists('/etc/shadow')")),
    "host directories": (HELD, 10.0, visible("set(os.listdir('/')) & {'home', 'root', 'var', 'work', 'opt', 'mnt', 'sys', 'run'}")),
    "symlink out": (HELD, 10.0, visible("os.symlink('/etc/passwd', '/tmp/link') or open('/tmp/link').read()")),
    "writes the system": (HELD, 10.0, attempt("open('/usr/lib/x.py', 'w').close()")),
    "writes the root": (HELD, 10.0, attempt("open('/x', 'w').close()")),
    "writes the guest": (HELD, 10.0, attempt("open('/guest/guest_jobs.py', 'a').write('x')")),
    "writes dev": (HELD, 10.0, attempt("open('/dev/x', 'w').close()")),
    "device node": (HELD, 10.0, attempt("import stat\nos.mknod('/tmp/disk', stat.S_IFBLK | 0o600, os.makedev(8, 0))\nopen('/tmp/disk')")),
    "runs a dropped program": (
        HELD, 10.0, attempt("open('/tmp/x', 'wb').write(b'#!/bin/sh\\n')\nos.chmod('/tmp/x', 0o755)\nos.execv('/tmp/x', ['x'])"),
    ),
    "runs a shell": (HELD, 10.0, attempt("import subprocess\nsubprocess.run(['sh', '-c', 'true'], check=True)")),
    "environment": (HELD, 10.0, visible("set(os.environ) - {'PATH', 'HOME', 'TMPDIR', 'LANG', 'PYTHONHASHSEED', 'OMP_NUM_THREADS',"
                                        " 'OPENBLAS_NUM_THREADS', 'PWD', 'LC_CTYPE'}")),
    # the network
    "tcp": (HELD, 10.0, attempt("socket.create_connection(('127.0.0.1', 22), 1)")),
    "udp": (HELD, 10.0, attempt("socket.socket(socket.AF_INET, socket.SOCK_DGRAM)")),
    "dns": (HELD, 10.0, attempt("socket.getaddrinfo('example.com', 80)")),
    "abstract socket": (HELD, 10.0, attempt("socket.socket(socket.AF_UNIX).bind('\\0shared')")),
    "netlink": (HELD, 10.0, attempt("socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)")),
    # the verifier
    "other descriptors": (
        HELD, 10.0, "import os\nopen_ones = []\nfor n in range(3, 1024):\n    try:\n        os.fstat(n)\n        open_ones.append(n)\n"
        "    except OSError:\n        pass\nprint('ESCAPED' if open_ones else 'held')\n",
    ),
    "reads what is expected": (
        HELD, 10.0, "import gc, sys\nmark = 'ESC' + 'APED'\nframe, texts = sys._getframe(), []\nwhile frame.f_back:\n"
        "    frame = frame.f_back\n    texts.append({k: v for k, v in frame.f_locals.items() if k != 'spec'})\n"
        "texts += [o for o in gc.get_objects() if isinstance(o, dict) and 'expected' in o and 'given' in o]\n"
        "print(mark if \"'expected': 'ESC\" in repr(texts) else 'held')\n",
    ),
    "early exit": ("printed ''", 10.0, "raise SystemExit(0)\n"),
    "hard exit": ("printed ''", 10.0, "import os\nos._exit(0)\n"),
    "fake verdict": ("printed", 10.0, "import sys\nprint('{\"passed\": true}')\nsys.stderr.write('{\"passed\": true}\\n')\n"),
    "null and surrogates": ("exit status", 10.0, "print('\x00\ud800')\n"),
}  # fmt: skip
