"""The only room that knows torch.distributed, megatron-core's parallel state and the device."""
