"""The collectives that other rooms need, by meaning instead of by process group."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from megatron_ring.errors import UserError

T = TypeVar("T")


def _reduce(tensor: torch.Tensor, group: Any, op: Any = dist.ReduceOp.SUM) -> torch.Tensor:
    """In place. A group of one has nothing to wait for: gloo's threads cost as much as a layer of a small model."""
    if dist.get_world_size(group) > 1:
        dist.all_reduce(tensor, op=op, group=group)
    return tensor


def splits_tensors() -> bool:
    """Whether there are several tensor-parallel ranks."""
    return bool(parallel_state.get_tensor_model_parallel_world_size() > 1)


def sum_over_data(tensor: torch.Tensor) -> torch.Tensor:
    """Sum over data-parallel ranks, in place."""
    return _reduce(tensor, parallel_state.get_data_parallel_group())


def max_over_data(tensor: torch.Tensor) -> torch.Tensor:
    """Element-wise maximum over data-parallel ranks, in place."""
    return _reduce(tensor, parallel_state.get_data_parallel_group(), dist.ReduceOp.MAX)


def sum_counts_over_data(counts: list[int], device: torch.device) -> list[int]:
    """Sums over data-parallel ranks of numbers that the host knows. A rank alone does not wait for its device."""
    if parallel_state.get_data_parallel_world_size() == 1:
        return counts
    tensor = sum_over_data(torch.tensor(counts, dtype=torch.int64, device=device))
    return [int(count) for count in tensor.tolist()]


def sum_over_pipeline(tensor: torch.Tensor) -> torch.Tensor:
    """Sum over pipeline stages, in place."""
    return _reduce(tensor, parallel_state.get_pipeline_model_parallel_group())


def sum_over_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """Sum over tensor-parallel ranks, in place."""
    return _reduce(tensor, parallel_state.get_tensor_model_parallel_group())


def max_over_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """Element-wise maximum over tensor-parallel ranks, in place."""
    return _reduce(tensor, parallel_state.get_tensor_model_parallel_group(), dist.ReduceOp.MAX)


def min_over_replica(value: int, device: torch.device) -> int:
    """The smallest `value` among the tensor- and pipeline-parallel ranks of a data-parallel replica."""
    tensor = torch.tensor([value], dtype=torch.int64, device=device)
    dist.all_reduce(tensor, op=dist.ReduceOp.MIN, group=parallel_state.get_model_parallel_group())
    return int(tensor.item())


def sum_over_processes(values: list[int], of_replica: bool) -> list[int]:
    """Sums of `values` over all processes, or over those of this data-parallel replica. Over gloo, on every device: NCCL
    would wait for what the device still has to do."""
    group = parallel_state.get_model_parallel_group() if of_replica else None
    if dist.get_world_size(group) == 1:
        return values
    tensor = torch.tensor(values, dtype=torch.int64)
    dist.all_reduce(tensor, group=group)
    return [int(value) for value in tensor.tolist()]


def max_over_world(values: list[int]) -> list[int]:
    """The largest of all processes, of each of `values`. Over gloo, as `sum_over_processes`."""
    tensor = torch.tensor(values, dtype=torch.int64)
    return [int(value) for value in _reduce(tensor, None, dist.ReduceOp.MAX).tolist()]


def gather_over_data(item: T) -> list[T]:
    """Every data-parallel rank's `item`, in rank order, on every rank. Pickles: for small host objects."""
    if parallel_state.get_data_parallel_world_size() == 1:
        return [item]
    items: list[Any] = [None] * parallel_state.get_data_parallel_world_size()
    dist.all_gather_object(items, item, group=parallel_state.get_data_parallel_group())
    return items


def gather_over_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """Concatenate tensor-parallel shards along the last dimension."""
    size = parallel_state.get_tensor_model_parallel_world_size()
    if size == 1:
        return tensor
    shards = [torch.empty_like(tensor) for _ in range(size)]
    dist.all_gather(shards, tensor.contiguous(), group=parallel_state.get_tensor_model_parallel_group())
    return torch.cat(shards, dim=-1)


def broadcast_over_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """The first tensor-parallel rank's `tensor` on every one of them, in place."""
    if parallel_state.get_tensor_model_parallel_world_size() > 1:
        src, group = parallel_state.get_tensor_model_parallel_src_rank(), parallel_state.get_tensor_model_parallel_group()
        dist.broadcast(tensor, src=src, group=group)
    return tensor


def gather_tokens_over_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """Concatenate the tensor-parallel ranks' tokens, [T/TP, …] -> [T, …], in rank order."""
    size = parallel_state.get_tensor_model_parallel_world_size()
    if size == 1:
        return tensor
    whole = tensor.new_empty(size * tensor.shape[0], *tensor.shape[1:])
    dist.all_gather_into_tensor(whole, tensor.contiguous(), group=parallel_state.get_tensor_model_parallel_group())
    return whole


def scatter_sum_of_tokens_over_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """Sum over tensor-parallel ranks and keep this rank's tokens, [T, …] -> [T/TP, …]."""
    size = parallel_state.get_tensor_model_parallel_world_size()
    if size == 1:
        return tensor
    mine = tensor.new_empty(tensor.shape[0] // size, *tensor.shape[1:])
    dist.reduce_scatter_tensor(mine, tensor.contiguous(), group=parallel_state.get_tensor_model_parallel_group())
    return mine


def broadcast_from_last_stage(tensor: torch.Tensor) -> torch.Tensor:
    """The last pipeline stage's `tensor` on every stage, in place."""
    if parallel_state.get_pipeline_model_parallel_world_size() > 1:
        dist.broadcast(
            tensor,
            src=parallel_state.get_pipeline_model_parallel_last_rank(),
            group=parallel_state.get_pipeline_model_parallel_group(),
        )
    return tensor


def send_to_next_stage(tensor: torch.Tensor) -> None:
    """Hand activations to the next pipeline stage."""
    dist.send(tensor.contiguous(), parallel_state.get_pipeline_model_parallel_next_rank())


def receive_from_previous_stage(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Take activations from the previous pipeline stage."""
    tensor = torch.empty(shape, dtype=dtype, device=device)
    dist.recv(tensor, parallel_state.get_pipeline_model_parallel_prev_rank())
    return tensor


def barrier() -> None:
    """Wait for all processes."""
    dist.barrier()


def broadcast_object_from_last_stage(item: T) -> T:
    """The last pipeline stage's `item` on every stage. Pickles: for small host objects."""
    if parallel_state.get_pipeline_model_parallel_world_size() == 1:
        return item
    items = [item]
    dist.broadcast_object_list(
        items,
        src=parallel_state.get_pipeline_model_parallel_last_rank(),
        group=parallel_state.get_pipeline_model_parallel_group(),
    )
    return items[0]


def gather_over_world(item: T) -> list[T]:
    """Every process's `item`, in rank order, on every process. Pickles: for small host objects."""
    items: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(items, item)
    return items


def gather_over_processes(item: T, of_replica: bool) -> list[tuple[int, T]]:
    """Every `item` with its process's rank, in order, from all processes or from those of this data-parallel replica, on
    every one of them. Pickles: for small host objects."""
    group = parallel_state.get_model_parallel_group() if of_replica else dist.group.WORLD
    items: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(items, item, group=group)
    return list(zip(dist.get_process_group_ranks(group), items, strict=True))


def broadcast_from_leader(item: T) -> T:
    """The `item` of the first process of this data-parallel replica on every one of it. Pickles: for host objects."""
    group = parallel_state.get_model_parallel_group()
    if dist.get_world_size(group) == 1:
        return item
    items = [item]
    dist.broadcast_object_list(items, src=dist.get_process_group_ranks(group)[0], group=group)
    return items[0]


def gather_over_pipeline(item: T) -> list[T] | None:
    """Every pipeline stage's `item`, in order, on the first stage; None on the others. Pickles: for host objects."""
    size = parallel_state.get_pipeline_model_parallel_world_size()
    if size == 1:
        return [item]
    first = parallel_state.get_pipeline_model_parallel_rank() == 0
    items: list[Any] | None = [None] * size if first else None
    dst, group = parallel_state.get_pipeline_model_parallel_first_rank(), parallel_state.get_pipeline_model_parallel_group()
    dist.gather_object(item, items, dst=dst, group=group)
    return items


def is_main() -> bool:
    """Whether this process is rank 0."""
    return dist.get_rank() == 0


def from_main(work: Callable[[], T]) -> T:
    """What `work` gives on rank 0, on every process: all see the same of what changes meanwhile. A `UserError` on rank 0 is
    raised on every process. Pickles: for small host objects."""
    outcome: list[Any] = [None]
    if is_main():
        try:
            outcome = [(work(), None)]
        except UserError as error:
            outcome = [(None, error)]
    dist.broadcast_object_list(outcome, src=0)
    value, refused = outcome[0]
    if refused is not None:
        raise refused
    result: T = value
    return result


def gather_to_main(item: T) -> list[T] | None:
    """Every process's `item`, in rank order, on rank 0; None on the others. Pickles: for small host objects."""
    items: list[Any] | None = [None] * dist.get_world_size() if is_main() else None
    dist.gather_object(item, items, dst=0)
    return items


def scatter_from_main(items: list[T] | None) -> T:
    """Rank 0's `items`, one for each rank. Pickles: for small host objects."""
    received: list[Any] = [None]
    dist.scatter_object_list(received, items, src=0)
    return received[0]
