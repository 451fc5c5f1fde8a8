"""From prompts to a selected step: collect, score, pool, unfinished, select, shard, write. Knows the sampler, the rewards
and the trainer."""

import megatron_ring.parallel  # noqa: F401  (first: it prepares the platform for megatron-core)
