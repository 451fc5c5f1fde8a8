"""Ring-lite's architecture (`bailing_moe`) as a megatron-core layer spec: attention, experts, router, norm, log-probs."""

import megatron_ring.parallel  # noqa: F401  (first: it prepares the platform for megatron-core)
