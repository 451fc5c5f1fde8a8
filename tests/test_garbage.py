"""The garbage collector rests while requests are opened, and is afterwards what it was."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from collections.abc import Iterator

import pytest

from megatron_ring.garbage import collector_paused, kept_what_is_there, search_as_usual, search_seldom
from tests.conftest import ROOT


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    usual = gc.get_threshold()
    yield
    gc.enable()
    gc.set_threshold(*usual)


@pytest.mark.parametrize("was_on", [True, False])
def test_it_is_afterwards_what_it_was(was_on: bool) -> None:
    if not was_on:
        gc.disable()
    with pytest.raises(ValueError, match="broken"), collector_paused():
        with collector_paused():
            assert not gc.isenabled()
        assert not gc.isenabled()
        raise ValueError("broken")
    assert gc.isenabled() is was_on


def test_what_was_there_is_kept_meanwhile() -> None:
    class Ring:
        def __init__(self) -> None:
            self.me = self

    outside = weakref.ref(Ring())  # garbage already
    with pytest.raises(ValueError, match="broken"), kept_what_is_there():
        assert outside() is None and gc.get_freeze_count() > 1000
        assert len(gc.get_objects()) < gc.get_freeze_count()
        inside = weakref.ref(Ring())
        gc.collect()
        assert inside() is None  # what comes later is searched
        with kept_what_is_there():  # changes nothing, and ends nothing
            kept = gc.get_freeze_count()
        assert gc.get_freeze_count() == kept
        raise ValueError("broken")
    assert gc.get_freeze_count() == 0


def test_searches_are_seldom_while_a_program_loads() -> None:
    usual = gc.get_threshold()
    search_seldom()
    assert gc.get_threshold()[0] > 10 * usual[0] and gc.isenabled()
    search_as_usual()
    assert gc.get_threshold() == usual


LOADED = """
import gc
usual = gc.get_threshold()
from megatron_ring.errors import run_main

def main():
    print(gc.get_threshold()[0] > 10 * usual[0])
    from megatron_ring.config.parallel import ParallelConfig
    from megatron_ring.config.presets import RING_TINY
    from megatron_ring.parallel import context, prepare
    prepare()
    context.initialize(ParallelConfig(), RING_TINY, 0)
    print(gc.get_threshold() == usual)

run_main(main)
"""


@pytest.mark.slow
def test_a_program_with_a_layout_searches_as_usual() -> None:
    done = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.split() == ["True", "True"], done.stderr
