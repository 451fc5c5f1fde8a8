"""What a step that runs out of memory says to lower."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from megatron_ring.config.pretrain import CorpusConfig, PretrainConfig
from megatron_ring.config.sft import SFTConfig, SFTDataConfig
from megatron_ring.errors import MemoryRanOutError
from megatron_ring.run.micro_batches import room_for

HERE = Path("nowhere")


def sft(tokens: int) -> SFTConfig:
    data = SFTDataConfig(train=HERE, tokenizer=HERE, context_length=64, global_batch=4, micro_batch_tokens=tokens)
    return SFTConfig(run_dir=HERE, preset="ring-tiny", data=data)


def pretraining(tokens: int) -> PretrainConfig:
    data = CorpusConfig(train=("nowhere:1",), tokenizer=HERE, sequence_length=64, global_batch=4, micro_batch_tokens=tokens)
    return PretrainConfig(run_dir=HERE, preset="ring-tiny", steps=5, data=data)


@pytest.mark.parametrize(
    ("config", "flag"),
    [
        (sft(64), "--data.context-length or --recompute full"),
        (pretraining(64), "--data.sequence-length or --recompute full"),
        (sft(256), "--data.micro-batch-tokens 128"),
        (pretraining(256), "--data.micro-batch-tokens 128"),
    ],
)
def test_the_flag_that_helps_is_named(config: Any, flag: str) -> None:
    context = cast(Any, SimpleNamespace(rank=1, data_size=1, world_size=2))
    said = f"rank 1: step 3 ran out of GPU memory: try {flag}$"
    with pytest.raises(MemoryRanOutError, match=said), room_for(3, config, context, may_shrink=True):
        raise torch.OutOfMemoryError
