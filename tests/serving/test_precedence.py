"""Who stands aside while a step is launched, and for how long."""

from __future__ import annotations

import threading

import pytest

from megatron_ring.serving import precedence
from megatron_ring.serving.precedence import Precedence


def asked(gate: Precedence) -> tuple[threading.Thread, threading.Event]:
    """A thread that stands aside, and what it sets after that."""
    through = threading.Event()

    def work() -> None:
        gate.stand_aside()
        through.set()

    thread = threading.Thread(target=work)
    thread.start()
    return thread, through


def test_others_wait_for_a_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precedence, "MOST_SECONDS", 600.0)
    gate = Precedence()
    gate.stand_aside()  # nobody is in it
    with gate:
        thread, through = asked(gate)
        assert not through.wait(0.1)
    thread.join()
    assert through.is_set()
    with pytest.raises(ValueError), gate:  # a launch that fails is over, too
        raise ValueError
    gate.stand_aside()


def test_nobody_waits_for_a_long_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precedence, "MOST_SECONDS", 0.01)
    gate = Precedence()
    with gate:
        for _ in range(3):
            thread, through = asked(gate)
            thread.join()
            assert through.is_set()
