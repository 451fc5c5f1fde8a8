"""From prompts to a selected step: collect, score, pool, unfinished, select, shard, write. Knows the sampler, the rewards
and the trainer."""
