"""What a kernel that may be launched early begins with (`dependent`)."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def begin(DEPENDENT: tl.constexpr):  # type: ignore[no-untyped-def]
    """Wait for the end of the kernel before, then let the next one's programs come."""
    if DEPENDENT:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
