"""What a kernel that may be launched early begins with (`dependent`), and may do before."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def begin(DEPENDENT: tl.constexpr):  # type: ignore[no-untyped-def]
    """Wait for the end of the kernel before, then let the next one's programs come."""
    if DEPENDENT == 2:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    if DEPENDENT == 1:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def ask_for(lines):  # type: ignore[no-untyped-def]
    """Have lines of 128 bytes, by pointers into them, brought into the L2 cache. For memory that no kernel writes."""
    tl.inline_asm_elementwise("prefetch.global.L2 [$1]; mov.b32 $0, 0;", "=r,l", [lines], tl.int32, is_pure=False, pack=1)
