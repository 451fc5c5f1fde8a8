"""Rows of tokens between the ranks that share experts, while the device computes something else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state


@dataclass(frozen=True)
class RowPlan:
    """How many rows go from whom to whom.

    Attributes:
        send, receive: rows to and from each expert-parallel rank.
        experts: int64 [sum of receive], on the device: which of this rank's experts each received row is for; rows come
            from rank after rank, from each sorted by expert.
    """

    send: list[int]
    receive: list[int]
    experts: torch.Tensor


def expert_ranks() -> int:
    """Ranks that share the experts of a layer."""
    return int(parallel_state.get_expert_model_parallel_world_size())


def expert_rank() -> int:
    """This process's place among them."""
    return int(parallel_state.get_expert_model_parallel_rank())


def gather_over_experts(x: torch.Tensor) -> torch.Tensor:
    """Contiguous x [T, …] of all ranks that share experts, one after another; each has as many rows."""
    whole = x.new_empty(expert_ranks() * x.shape[0], *x.shape[1:])
    dist.all_gather_into_tensor(whole, x, group=parallel_state.get_expert_model_parallel_group())
    return whole


def scatter_sum_over_experts(x: torch.Tensor) -> torch.Tensor:
    """Undo `gather_over_experts`: the sum over the ranks of contiguous x, of it this rank's rows."""
    mine = x.new_empty(x.shape[0] // expert_ranks(), *x.shape[1:])
    dist.reduce_scatter_tensor(mine, x, group=parallel_state.get_expert_model_parallel_group())
    return mine


class PendingPlan:
    """The exchange of counts, under way. What is given to the device before `wait` keeps it busy while the host waits.

    Args:
        ends_e: int32 [E], where the rows for each of all experts end.
    """

    def __init__(self, ends_e: torch.Tensor) -> None:
        self._group = parallel_state.get_expert_model_parallel_group()
        self._size, self._rank = dist.get_world_size(self._group), dist.get_rank(self._group)
        counts_e = torch.diff(ends_e, prepend=ends_e.new_zeros(1))
        self._counts = counts_e.new_empty(self._size * counts_e.numel())
        dist.all_gather_into_tensor(self._counts, counts_e, group=self._group)
        cuda = ends_e.is_cuda
        self._host = torch.empty(self._counts.shape, dtype=self._counts.dtype, pin_memory=cuda)
        self._host.copy_(self._counts, non_blocking=cuda)
        self._done = torch.cuda.Event()
        self._done.record()

    def wait(self) -> RowPlan:
        """Wait for the counts alone."""
        self._done.synchronize()
        counts = self._host.view(self._size, self._size, -1)  # [from, to, expert there]
        send = counts[self._rank].sum(-1).tolist()
        receive = counts[:, self._rank].sum(-1).tolist()
        segments = self._counts.view(counts.shape)[:, self._rank].flatten()
        local = torch.arange(counts.shape[2], device=segments.device).repeat(self._size)
        return RowPlan(send, receive, torch.repeat_interleave(local, segments, output_size=sum(receive)))


def exchange_rows(x: torch.Tensor, send: list[int], receive: list[int]) -> tuple[torch.Tensor, Any]:
    """Begin to exchange rows of contiguous x [sum of send, …] with the expert-parallel ranks.

    Returns:
        [sum of receive, …], to be used after `wait()` of the second.
    """
    out = x.new_empty(sum(receive), *x.shape[1:])
    group = parallel_state.get_expert_model_parallel_group()
    return out, dist.all_to_all_single(out, x, receive, send, group=group, async_op=True)
