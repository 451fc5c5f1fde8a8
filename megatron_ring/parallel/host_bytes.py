"""Bytes in host memory from one data-parallel rank to another: what is too large to be gathered everywhere. Over gloo."""

from __future__ import annotations

import torch
import torch.distributed as dist
from megatron.core import parallel_state


def exchange_over_data(data: bytearray, sizes: list[int]) -> list[memoryview]:
    """Of `data` the first `sizes[0]` bytes go to the first data-parallel rank, the next `sizes[1]` to the second, and so on.
    All of them take part; returns what each has sent to this one, in rank order."""
    group = parallel_state.get_data_parallel_group()
    receive = torch.empty(len(sizes), dtype=torch.int64)
    dist.all_to_all_single(receive, torch.tensor(sizes, dtype=torch.int64), group=group)
    counts = receive.tolist()
    found = torch.empty(sum(counts), dtype=torch.uint8)
    dist.all_to_all_single(found, _tensor(data), counts, sizes, group=group)
    whole, ends = found.numpy().data, torch.cumsum(receive, 0).tolist()
    return [whole[end - count : end] for end, count in zip(ends, counts, strict=True)]


def send_over_data(data: bytes, rank: int) -> None:
    """Hand `data` to another data-parallel rank, which calls `receive_over_data`."""
    group = parallel_state.get_data_parallel_group()
    to = dist.get_global_rank(group, rank)
    dist.send(torch.tensor([len(data)], dtype=torch.int64), to, group=group)
    dist.send(_tensor(bytearray(data)), to, group=group)


def receive_over_data(rank: int) -> bytes:
    """What another data-parallel rank hands to this one."""
    group = parallel_state.get_data_parallel_group()
    source, size = dist.get_global_rank(group, rank), torch.empty(1, dtype=torch.int64)
    dist.recv(size, source, group=group)
    data = torch.empty(int(size), dtype=torch.uint8)
    dist.recv(data, source, group=group)
    return data.numpy().tobytes()


def _tensor(data: bytearray) -> torch.Tensor:
    return torch.frombuffer(data, dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
