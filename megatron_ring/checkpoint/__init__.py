"""Weights and training state on disk: sharded checkpoints, Hugging Face conversion, layout-independent initialisation."""

import megatron_ring.parallel  # noqa: F401  (first: it prepares the platform for megatron-core)
