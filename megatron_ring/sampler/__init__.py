"""Generation inside the training process, on the live training weights, under the training layout."""

import megatron_ring.parallel  # noqa: F401  (first: it prepares the platform for megatron-core)
