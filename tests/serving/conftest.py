"""A real server in front of a random tiny model, whose template knows tools and thinking."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from subprocess import Popen
from typing import Any

import pytest

from tests.forkserver import free_ports
from tests.mains.conftest import command, run, start, tiny_data

__all__ = ["tiny_data"]
TEMPLATE = (
    "{% if tools %}{{ '<role>SYSTEM</role>Tools: ' + (tools | tojson) }}{% endif %}"
    "{% for message in messages %}"
    "{{ '<role>' + message.role + '</role>' + message.content }}"
    "{% for call in message.tool_calls or [] %}{{ '<tool_call>' + (call.function | tojson) + '</tool_call>' }}{% endfor %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<role>ASSISTANT</role>' }}{% if thinks %}{{ '<think>\n' }}{% endif %}{% endif %}"
)

PORTS = free_ports()  # none that the system gives to another connection before the server has it


class Served:
    """A server's process and address."""

    def __init__(self, process: Popen[str], address: str) -> None:
        self.process, self.address = process, address

    def post(self, path: str, body: Any, headers: dict[str, str] | None = None) -> tuple[int, Any]:
        """Status and JSON; `body` may be bytes."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, data, headers or {})
        return self._open(request)

    def get(self, path: str, headers: dict[str, str] | None = None) -> tuple[int, Any]:
        return self._open(urllib.request.Request(self.address + path, headers=headers or {}))

    def unfinished(self) -> int:
        """Choices that are being sampled, or wait for it."""
        lines = self.get("/metrics")[1].splitlines()
        return int(next(line for line in lines if line.startswith("ring_choices_unfinished ")).split()[1])

    def stop(self) -> tuple[int, str]:
        """Exit status and stderr after SIGTERM."""
        self.process.send_signal(signal.SIGTERM)
        _, errors = self.process.communicate(timeout=60)
        return self.process.returncode, errors

    @staticmethod
    def _open(request: urllib.request.Request) -> tuple[int, Any]:
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                status, text = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            status, text = error.code, error.read()
        try:
            return status, json.loads(text)
        except ValueError:
            return status, text.decode()


def launch(model: list[str], *flags: str, processes: int = 1, really: bool = False) -> Served:
    port = next(PORTS)
    arguments = command("megatron_ring.serve", *model, "--port", str(port), *flags, processes=processes)
    pipes: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    served = Served(start(arguments, really, **pipes), f"http://127.0.0.1:{port}")
    until = time.monotonic() + 120
    while time.monotonic() < until:
        assert served.process.poll() is None, served.process.communicate()[1]
        try:
            if served.get("/health")[0] == 200:
                return served
        except OSError:
            time.sleep(0.05)
    raise AssertionError("the server does not answer")


@pytest.fixture(scope="session")
def model(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Flags of a random tiny model and a tokenizer with `TEMPLATE`."""
    out = tmp_path_factory.mktemp("served")
    done = run([sys.executable, "tools/make_random_hf.py", "--preset", "ring-tiny", "--out", str(out / "hf")])
    assert done.returncode == 0, done.stderr
    shutil.copytree(tiny_data / "tokenizer", out / "tokenizer")
    file = out / "tokenizer" / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": TEMPLATE}))
    return ["--checkpoint", str(out / "hf"), "--tokenizer", str(out / "tokenizer"), "--model-name", "tiny"]


@pytest.fixture(scope="session")
def served(model: list[str]) -> Iterator[Served]:
    server = launch(model, "--max-queue", "300", "--max-body-mib", "1", "--body-seconds", "1")
    yield server
    if server.process.poll() is None:
        status, errors = server.stop()
        assert status == 0, errors
