"""What a kernel that may be launched early begins with (`dependent`)."""

from __future__ import annotations

import triton
import triton.language as tl

MOST_READERS = tl.constexpr(256)  # programs of a kernel that read ahead


@triton.jit
def begin(DEPENDENT: tl.constexpr):  # type: ignore[no-untyped-def]
    """Wait for the end of the kernel before, then let the next one's programs come."""
    if DEPENDENT:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def read_ahead(ahead_ptr, ahead_bytes, THREADS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Ask for this program's part of so many bytes, a multiple of 16, in the L2 cache. Nothing waits for them."""
    programs = tl.minimum(tl.num_programs(0), MOST_READERS)
    if tl.program_id(0) < programs:
        chunk = (ahead_bytes // (programs * THREADS) + 16) // 16 * 16
        at = (tl.program_id(0) * THREADS + tl.arange(0, THREADS)).to(tl.int64) * chunk
        at = ahead_ptr.to(tl.int64) + tl.minimum(at, ahead_bytes - chunk)
        tl.inline_asm_elementwise(
            "cp.async.bulk.prefetch.L2.global [$1], $2; mov.u32 $0, 0;", "=r,l,r",
            [at, tl.full([THREADS], 0, tl.int32) + chunk], dtype=tl.int32, is_pure=False, pack=1,
        )  # fmt: skip
