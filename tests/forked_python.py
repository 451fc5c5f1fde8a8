"""A Python for shell scripts that is forked from the fork server: `processes.forked_python` gives it a first line.

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
if (torchrun and "--standalone" not in arguments) or "FORK_SERVER" not in os.environ:
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
