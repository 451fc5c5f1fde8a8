"""The algorithm: rollout records, advantages, the token budget and the losses. Pure functions on torch tensors.

Nothing is imported here: `python -m megatron_ring.rl --help` runs this file first and must answer without torch.
"""
