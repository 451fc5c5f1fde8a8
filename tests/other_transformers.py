"""Programs that load exported folders in transformers, the installed release and another one.

The environment variable RING_TRANSFORMERS names a folder with the other release, made by `pip install --target`. A process
loads each release once, and forks for every program.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

OTHER = "RING_TRANSFORMERS"
RELEASES = {"installed_release": ""} | ({"other_release": os.environ[OTHER]} if OTHER in os.environ else {})
in_each_release = pytest.mark.parametrize("release", RELEASES.values(), ids=RELEASES.keys())

_SERVER = """
import json, os, sys, traceback
import torch._dynamo
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationMixin, PreTrainedModel  # loaded when first named
assert len(os.listdir("/proc/self/task")) == 1, "a process with threads cannot be forked"
while line := sys.stdin.readline():
    program, arguments, folder, output = json.loads(line)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.chdir(folder)
            file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(file, 1), os.dup2(file, 2)
            sys.argv[1:] = arguments
            exec(program, {"__name__": "__main__"})
            status = 0
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        os._exit(status)
    print(os.waitpid(pid, 0)[1], flush=True)
"""


class _Release:
    """A process that has loaded one release. It ends with this one, which closes its standard input."""

    def __init__(self, folder: str) -> None:
        self.modules = tempfile.TemporaryDirectory(prefix="transformers-modules-")  # code of exports, from all programs
        path = os.pathsep.join(filter(None, [folder, os.environ.get("PYTHONPATH")]))
        env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": self.modules.name, "PYTHONPATH": path,
               "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}  # fmt: skip
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen([sys.executable, "-c", _SERVER], env=env, text=True, **pipes)  # type: ignore[call-overload]


_release = functools.cache(_Release)


def in_transformers(release: str, program: str, *arguments: str, folder: Path) -> str:
    """What the Python `program` prints in a release of `RELEASES`; it runs in `folder`."""
    server, output = _release(release).process, folder / "printed"
    print(json.dumps([program, arguments, str(folder), str(output)]), file=server.stdin, flush=True)
    status = server.stdout.readline()
    text = output.read_text() if output.exists() else ""
    assert status == "0\n", (status, text)
    return text
