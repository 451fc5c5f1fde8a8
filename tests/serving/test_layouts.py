"""The server under parallel layouts: requests reach every replica, answers are those of one process, a lost rank is told."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.serving.conftest import Served, launch

LAYOUTS = {"dp2": (), "tp2": ("--parallel.tensor", "2"), "pp2": ("--parallel.pipeline", "2"),
           "ep2": ("--parallel.expert", "2")}  # fmt: skip
BODIES: list[dict[str, Any]] = [
    {"prompt": [[5 + place, 9, 40, 7], [6] * (place + 1)], "max_tokens": 8, "seed": place, "temperature": place % 2,
     "n": 2, "echo": True, "logprobs": 1, "return_token_ids": True}
    for place in range(4)
]  # fmt: skip


def ask(served: Served) -> list[Any]:
    with ThreadPoolExecutor(4) as clients:
        found = list(clients.map(lambda body: served.post("/v1/completions", body), BODIES))
    assert all(status == 200 for status, _ in found), found
    return [answer["choices"] for _, answer in found]


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("layout", LAYOUTS)
def test_answers_do_not_depend_on_the_layout(layout: str, model: list[str], served: Served) -> None:
    expected = ask(served)
    spread = launch(model, *LAYOUTS[layout], processes=2)
    found = ask(spread)
    for ours, theirs in zip(found, expected, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert one["token_ids"] == other["token_ids"] and one["finish_reason"] == other["finish_reason"]
            numbers, wanted = one["logprobs"]["token_logprobs"], other["logprobs"]["token_logprobs"]
            assert numbers[0] is None and numbers[1:] == pytest.approx(wanted[1:], abs=1e-5)
    status, errors = spread.stop()
    assert "Traceback" not in errors.split("torch.distributed.elastic")[0], errors
    assert status in (0, -signal.SIGTERM, 1, 128 + signal.SIGTERM), (status, errors)  # torchrun's own word for a signal


def workers(process: subprocess.Popen[str]) -> dict[int, int]:
    """Process ids of torchrun's workers by rank."""
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    found = {}
    for child in children:
        with open(f"/proc/{child}/environ", "rb") as file:
            variables = dict(item.split(b"=", 1) for item in file.read().split(b"\0") if b"=" in item)
        if b"RANK" in variables:
            found[int(variables[b"RANK"])] = int(child)
    return found


@pytest.mark.slow
@pytest.mark.distributed
def test_a_killed_rank_ends_the_server_with_its_reason(model: list[str]) -> None:
    served = launch(model, "--parallel.tensor", "2", processes=2, really=True)
    found: list[Any] = []

    def ask_long() -> None:
        try:
            found.append(served.post("/v1/completions", {"prompt": "1", "max_tokens": 900, "stop_token_ids": []}))
        except OSError as error:  # torchrun may end the listening process first
            found.append(error)

    thread = threading.Thread(target=ask_long)
    thread.start()
    while thread.is_alive() and not served.unfinished():
        time.sleep(0.05)
    os.kill(workers(served.process)[1], signal.SIGKILL)
    _, errors = served.process.communicate(timeout=60)
    thread.join(timeout=30)
    assert served.process.returncode != 0 and "SIGKILL" in errors, errors
    said = [line for line in errors.splitlines() if line.startswith("error: ")]  # ours; what follows is torchrun's
    assert said == ["error: rank 0: serving ended within a step: another process of this launch has ended; the launcher "
                    "says which"], errors  # fmt: skip
    assert not thread.is_alive() and found  # told, or hung up on; never left waiting
    if isinstance(found[0], tuple):
        status, answer = found[0]
        assert (status >= 500 and answer["error"]["message"]) or status == 200
