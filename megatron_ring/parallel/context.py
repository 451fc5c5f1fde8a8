"""Process set-up: device, torch.distributed, megatron-core's parallel state and random seeds, from a frozen config."""

from __future__ import annotations

import gc
import os
import random
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist

from megatron_ring.config.model import ModelConfig
from megatron_ring.config.parallel import ParallelConfig
from megatron_ring.garbage import search_as_usual
from megatron_ring.parallel import cpu_platform, gloo
from megatron_ring.parallel.device import current_device, has_cuda
from megatron_ring.parallel.platform import require_prepared


@dataclass(frozen=True)
class ParallelContext:
    """Where this process stands. Ranks are 0-based; `groups` are reached through the functions of `collectives`."""

    config: ParallelConfig
    device: torch.device
    rank: int
    world_size: int
    data_rank: int
    data_size: int
    tensor_rank: int
    pipeline_rank: int
    expert_rank: int
    expert_tensor_rank: int

    @property
    def is_main(self) -> bool:
        """The one process that writes what all agree on and talks to the user."""
        return self.rank == 0

    @property
    def leads_replica(self) -> bool:
        """The one process of its data-parallel replica that does what needs no model, such as scoring."""
        return self.tensor_rank == 0 and self.pipeline_rank == 0

    @property
    def first_stage(self) -> bool:
        return self.pipeline_rank == 0

    @property
    def last_stage(self) -> bool:
        return self.pipeline_rank == self.config.pipeline - 1


def start_processes(timeout_minutes: float = 30.0) -> None:
    """Connect the processes of this launch, on the device of each; of no effect when they are connected."""
    require_prepared()
    if dist.is_initialized():
        return
    cuda = torch.cuda.is_available()
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    timeout = timedelta(minutes=timeout_minutes)
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        # cuDNN's attention builds a plan for every new shape, and ours change with every decoded token: on an H100 bf16
        # sampling took 8 times as long as fp32, which never goes through it.
        torch.backends.cuda.enable_cudnn_sdp(False)
    if "RANK" in os.environ:
        dist.init_process_group(backend, timeout=timeout)
    else:  # one plain process: no rendezvous, no port
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)
    if not cuda:
        gloo.share_device()


def world_size_from_environment() -> int:
    """Processes of this run as torchrun states it; 1 in a plain process. Needs no process group."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank_from_environment() -> int:
    """This process's rank as torchrun states it; 0 in a plain process. Needs no process group."""
    return int(os.environ.get("RANK", "0"))


def initialize(parallel: ParallelConfig, model: ModelConfig, seed: int, timeout_minutes: float = 30.0) -> ParallelContext:
    """Set up this process for `parallel`. Works under torchrun with any process count and in a single plain process.

    Raises:
        UserError: the layout does not fit the model or the number of processes.
    """
    parallel.check(model, world_size_from_environment())
    from megatron.core import parallel_state, tensor_parallel

    search_as_usual()
    start_processes(timeout_minutes)
    if not has_cuda():
        cpu_platform.apply_to_megatron()
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=parallel.tensor,
        pipeline_model_parallel_size=parallel.pipeline,
        expert_model_parallel_size=parallel.expert,
        expert_tensor_parallel_size=parallel.expert_tensor,
    )
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    tensor_parallel.model_parallel_cuda_manual_seed(seed)
    return ParallelContext(
        config=parallel,
        device=current_device(),
        rank=dist.get_rank(),
        world_size=dist.get_world_size(),
        data_rank=parallel_state.get_data_parallel_rank(),
        data_size=parallel_state.get_data_parallel_world_size(),
        tensor_rank=parallel_state.get_tensor_model_parallel_rank(),
        pipeline_rank=parallel_state.get_pipeline_model_parallel_rank(),
        expert_rank=parallel_state.get_expert_model_parallel_rank(),
        expert_tensor_rank=parallel_state.get_expert_tensor_parallel_rank(),
    )


def shutdown(keep_process_group: bool = False) -> None:
    """Undo `initialize`; with `keep_process_group` another layout can be set up over the same processes."""
    from megatron.core import parallel_state

    if parallel_state.is_initialized():
        parallel_state.destroy_model_parallel()
    if dist.is_initialized() and not keep_process_group:
        dist.destroy_process_group()
        gc.collect()  # models hold groups in reference cycles, and every gloo group has threads of its own
