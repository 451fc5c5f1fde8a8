"""What a kernel that may be launched early begins with (`dependent`)."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def begin(DEPENDENT: tl.constexpr, PARTLY: tl.constexpr = False):  # type: ignore[no-untyped-def]
    """Wait for the end of the kernel before, then let the next one's programs come. PARTLY: `await_made` will wait."""
    if DEPENDENT:
        if not PARTLY:
            tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def tell_made(made_at, PARTLY: tl.constexpr):  # type: ignore[no-untyped-def]
    """Count this program among those whose results can be read."""
    if PARTLY:
        tl.debug_barrier()  # all threads' results before the count
        tl.atomic_add(made_at, 1, sem="release", scope="gpu")


@triton.jit
def await_made(made_at, programs, PARTLY: tl.constexpr):  # type: ignore[no-untyped-def]
    """Wait until so many programs of the kernel before have told. They all have places on the device, or this program would
    not have come: they end."""
    if PARTLY:
        made = tl.atomic_add(made_at, 0, sem="acquire", scope="gpu")
        while made < programs:
            made = tl.atomic_add(made_at, 0, sem="acquire", scope="gpu")


@triton.jit
def end_behind(PARTLY: tl.constexpr):  # type: ignore[no-untyped-def]
    """The last program waits for the end of the kernel before, which others need not have done: the next kernel waits for
    this one alone, and must not run beside programs of the one before, such as of experts without rows."""
    if PARTLY:
        first_two = (tl.program_id(0) == tl.num_programs(0) - 1) & (tl.program_id(1) == tl.num_programs(1) - 1)
        if first_two & (tl.program_id(2) == tl.num_programs(2) - 1):
            tl.extra.cuda.gdc_wait()
