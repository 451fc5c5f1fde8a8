"""What is said when a signal has ended a run."""

from __future__ import annotations

import contextlib
import io

import pytest

from megatron_ring.config.parallel import ParallelConfig
from megatron_ring.config.presets import get_preset
from megatron_ring.errors import StoppedBySignal
from megatron_ring.parallel import context
from megatron_ring.run.stopping import StopRequest


def said_at_the_end(continues: bool) -> str:
    with contextlib.redirect_stderr(io.StringIO()) as err, contextlib.suppress(StoppedBySignal):
        StopRequest(1.0, str).finish(7, True, continues)
    return err.getvalue()


def compare() -> None:
    context.initialize(ParallelConfig(), get_preset("ring-tiny"), 0)
    said = "stopped by a signal to another process: step_7 is saved; "
    assert said_at_the_end(True) == f"{said}the same command continues\n"
    assert said_at_the_end(False) == f"{said}as weights alone, for --init-from of another --run-dir\n"


@pytest.mark.distributed
def test_whether_the_run_can_go_on_is_said(run_on) -> None:  # type: ignore[no-untyped-def]
    run_on(1, compare)
