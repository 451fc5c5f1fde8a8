"""The training step: trainer, optimizer, gradient buffers, off-load, losses, reference, first pass. Knows no prompts and no
rewards."""

import megatron_ring.parallel  # noqa: F401  (first: it prepares the platform for megatron-core)
