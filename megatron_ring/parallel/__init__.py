"""The only room that knows torch.distributed, megatron-core's parallel state and the device.

Importing it imports megatron-core (seconds), on the CPU platform where CUDA is absent. The rooms that build on
megatron-core import this one first.
"""

from megatron_ring.parallel.platform import prepare

prepare()
