"""Runs programs that a model wrote, in name spaces, without the network, under limits. See `guest_zygote` and `bwrap`."""

from megatron_ring.rewards.sandbox.images import Limits
from megatron_ring.rewards.sandbox.run import RunResult

__all__ = ["Limits", "RunResult"]
