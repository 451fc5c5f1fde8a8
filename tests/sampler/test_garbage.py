"""The garbage collector rests while requests are opened, and is afterwards what it was."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from megatron_ring.sampler.garbage import collector_paused


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    yield
    gc.enable()


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
