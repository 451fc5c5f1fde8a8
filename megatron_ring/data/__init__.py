"""Everything between files on disk and equal micro-batches: problems, tokenizer, packing, resumable streams.

This package imports neither megatron nor `torch.distributed`; `problems` and `files` do not import torch either.
"""
