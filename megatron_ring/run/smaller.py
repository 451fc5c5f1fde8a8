"""Beginning anew with smaller sizes, once, where those that the program chose leave no room for the first step."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any, TypeVar

from megatron_ring.parallel import context
from megatron_ring.parallel.device import return_unused_memory

Config = TypeVar("Config")


class SmallerSizes(Exception):  # no error: what to do instead
    """The run is to begin anew in this process. `config`: with half of the sizes that were chosen."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config


def run_with_smaller(run: Callable[[Config], None], config: Config) -> None:
    """`run(config)`, again with smaller sizes where it asks for that. Raises what the run raises."""
    try:
        return run(config)
    except SmallerSizes as found:
        config = found.config
    free_everything()  # not in the handler: the failed step's tensors hang on the exception
    run(config)


def free_everything() -> None:
    """Give back the memory and the groups of a run that nothing refers to any more."""
    context.shutdown()
    gc.collect()
    return_unused_memory()
