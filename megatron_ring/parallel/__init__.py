"""The only room that knows torch.distributed, megatron-core's parallel state and the device.

megatron-core assumes CUDA. `prepare` puts the CPU in its place where there is none; no import does, and importing this
room or one that builds on it changes nothing of torch. So a main, tool or test process calls `prepare()` first and imports
the rooms that build on megatron-core (model, checkpoint, training, sampler, rollout, run) after that: some of what is
replaced is looked up while megatron-core is imported. `prepare` refuses to come too late, and `context.start_processes`
to work without it.
"""


def prepare() -> None:
    """Make this process ready for megatron-core. Imports torch, not megatron-core. Idempotent.

    Raises:
        RuntimeError: there is no CUDA and megatron-core has been imported before.
    """
    from megatron_ring.parallel import platform

    platform.prepare()
