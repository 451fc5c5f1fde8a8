"""A Python for shell scripts that is forked from the fork server: `processes.forked_python` gives it a first line, and what
of the environment is read too early as `EARLY`, by the beginnings of names in `READ_EARLY`.

It starts in milliseconds, hands its arguments, environment, folder and standard streams over, passes signals on and ends as
the forked process ends. What the server does not offer is started by the system.
"""

import json
import os
import signal
import socket
import sys

arguments = sys.argv[1:]
torchrun = arguments[:2] == ["-m", "torch.distributed.run"]
early = {n: value for n, value in os.environ.items() if n.startswith(READ_EARLY) and n not in READ_LATE}  # noqa: F821
served = "FORK_SERVER" in os.environ and early == EARLY and len(arguments) > 0  # noqa: F821
system = not served or (arguments[0].startswith("-") and arguments[0] not in ("-m", "-c"))
if system or (torchrun and "--standalone" not in arguments):
    os.execv(sys.executable, [sys.executable, *arguments])
connection = socket.socket(socket.AF_UNIX)
connection.connect(os.environ["FORK_SERVER"])
request = {"arguments": arguments, "cwd": os.getcwd(), "environment": dict(os.environ), "new_session": False}
data = json.dumps(request).encode() + b"\n"
if rest := data[socket.send_fds(connection, [data], [0, 1, 2]) :]:  # the other end may be gone where nothing is left
    connection.sendall(rest)
answers = connection.makefile()
pid = int(answers.readline().split()[1])
for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(name, lambda number, _: os.kill(pid, number))
status = int(answers.readline().split()[1])
if status < 0:
    signal.signal(-status, signal.SIG_DFL) if -status != signal.SIGKILL else None
    os.kill(os.getpid(), -status)
sys.exit(status)
