"""What every training stage shares: the step, the optimizer, the run directory, metrics and progress."""

import megatron_ring.parallel  # noqa: F401  (first: it prepares the platform for megatron-core)
