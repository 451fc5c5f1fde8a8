"""megatron-core's sharded state dicts on disk, in torch's distributed-checkpoint format.

Saving has two halves. `stage_sharded` (all ranks together) agrees on who writes what and copies it to host memory;
`Staged.write` then needs neither the device nor the other ranks, so that it can run while training goes on.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.strategies import torch as mcore_torch
from torch.distributed.checkpoint.filesystem import FileSystem
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex
from torch.distributed.checkpoint.planner import SavePlan, WriteItem
from torch.distributed.checkpoint.storage import WriteResult

from megatron_ring.checkpoint.fast_files import DirectWriter
from megatron_ring.parallel import collectives
from megatron_ring.parallel.device import synchronize

Content = torch.Tensor | io.BytesIO


class _SummingFileSystem(FileSystem):
    """torch's file system; remembers checksums of the files written."""

    def __init__(self) -> None:
        self.checksums: dict[str, list[str]] = {}

    @contextmanager
    def create_stream(self, path: Any, mode: str) -> Iterator[Any]:
        if mode != "wb":
            with super().create_stream(path, mode) as stream:
                yield stream
            return
        with DirectWriter(Path(path)) as file:
            yield file
        self.checksums[Path(path).name] = file.checksums


class ShardWriter(dcp.FileSystemWriter):
    """Writes one durable file per plan, in the order of its items."""

    def __init__(self, folder: Path) -> None:
        # No copying ahead: contents are on the host already, and a thread must not touch the device. Files are durable when
        # our file system closes them.
        super().__init__(folder, sync_files=False, thread_count=1, per_thread_copy_ahead=0)
        self.fs = self._summing = _SummingFileSystem()

    @property
    def checksums(self) -> dict[str, list[str]]:
        """Checksums of every file written so far, by name (torch renames `.metadata.tmp` to `.metadata`)."""
        return {name.removesuffix(".tmp"): crc for name, crc in self._summing.checksums.items()}


class _Contents(dcp.DefaultSavePlanner):
    """Hands out contents that have been resolved before."""

    def __init__(self, contents: dict[MetadataIndex, Content]) -> None:
        super().__init__()
        self._contents = contents

    def resolve_data(self, write_item: WriteItem) -> Content:
        return self._contents[write_item.index]


@dataclass
class Staged:
    """What one rank will write. `metadata` is of the whole checkpoint, on the main rank only."""

    writer: ShardWriter
    plan: SavePlan
    contents: dict[MetadataIndex, Content]
    metadata: Metadata | None

    def write(self) -> list[WriteResult]:
        """Write this rank's file. Raises OSError or RuntimeError when the disk does not take it."""
        results = self.writer.write_data(self.plan, _Contents(self.contents)).value()
        assert isinstance(results, list)
        return results

    def finish(self, results: list[list[WriteResult]]) -> None:
        """Write where everything is. The main rank only, with every rank's results in rank order."""
        assert self.metadata is not None
        self.writer.finish(self.metadata, results)


class HostBuffers:
    """Host memory that tensors are copied to, kept from one save to the next (page-locked for a CUDA device)."""

    def __init__(self) -> None:
        self._held: dict[MetadataIndex, torch.Tensor] = {}

    def copy(self, index: MetadataIndex, tensor: torch.Tensor) -> torch.Tensor:
        """Start copying `tensor` to the buffer called `index`."""
        held = self._held.get(index)
        if held is None or held.shape != tensor.shape or held.dtype != tensor.dtype:
            held = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            self._held[index] = held
        return held.copy_(tensor, non_blocking=True)


class _Stage(mcore_torch.TorchDistSaveShardedStrategy):
    """A strategy for megatron-core's `save` that plans and copies instead of writing."""

    def __init__(self, buffers: HostBuffers) -> None:
        super().__init__("torch_dist", 1)
        self.buffers = buffers
        self.staged: Staged | None = None

    def save(self, sharded_state_dict: dict[str, Any], checkpoint_dir: Path) -> None:
        renamed, _, _ = mcore_torch._replace_state_dict_keys_with_sharded_keys(
            sharded_state_dict, self.keep_only_main_replica
        )
        planner = mcore_torch.MCoreSavePlanner(
            dedup_replicated_tensors=not self.keep_only_main_replica, flatten_state_dict=False
        )
        planner.set_up_planner(mcore_torch.mcore_to_pyt_state_dict(renamed, False), is_coordinator=collectives.is_main())
        writer, metadata, plans = ShardWriter(checkpoint_dir), None, None
        everyone = collectives.gather_to_main(planner.create_local_plan())
        if everyone is not None:
            plans, metadata = planner.create_global_plan(everyone)
            plans = writer.prepare_global_plan(plans)
        plan = planner.finish_plan(collectives.scatter_from_main(plans))
        contents: dict[MetadataIndex, Content] = {}
        for item in plan.items:
            content = planner.resolve_data(item)
            contents[item.index] = (
                self.buffers.copy(item.index, content.detach()) if isinstance(content, torch.Tensor) else content
            )
        synchronize()
        self.staged = Staged(writer, plan, contents, metadata)


def stage_sharded(state: dict[str, Any], folder: Path, buffers: HostBuffers) -> Staged:
    """Plan to write `state` (sharded tensors, and plain values equal on all ranks) into the existing, empty `folder`,
    and copy it to the host. All ranks take part; `state` may change afterwards."""
    stage = _Stage(buffers)
    dist_checkpointing.save(state, str(folder), sharded_strategy=stage)
    assert stage.staged is not None
    return stage.staged


def load_sharded(template: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Read what `template` describes, resharded to this layout; plain values come along."""
    return dist_checkpointing.load(template, str(folder))


def allocate_optimizer_state(optimizer: Any) -> None:
    """Give every parameter of a distributed optimizer that has not stepped yet its (zero) state: megatron-core describes
    only what is there, and torch's AdamW allocates it in the first step."""
    for part in getattr(optimizer, "chained_optimizers", [optimizer]):
        for group in part.optimizer.param_groups:
            for parameter in group["params"]:
                if not part.optimizer.state[parameter]:
                    part.optimizer.state[parameter] = {
                        "step": torch.zeros((), dtype=torch.float32),
                        "exp_avg": torch.zeros_like(parameter),
                        "exp_avg_sq": torch.zeros_like(parameter),
                    }


def load_optimizer(optimizer: Any, state: dict[str, Any]) -> None:
    """Load a distributed optimizer's state.

    megatron-core 0.16-0.19 with torch's AdamW leaves out each parameter's `step` when it copies fully reshardable state
    (KeyError), and gives all parameters one shared `step` tensor, which would then count once per parameter. Both are
    mended here.
    """
    parts = [part for part in getattr(optimizer, "chained_optimizers", [optimizer]) if hasattr(part, "gbuf_ranges")]
    for part in parts:
        copy_state = type(part)._set_main_param_and_optimizer_states

        def keep_step(model_param: Any, tensors: dict[str, Any], part: Any = part, copy_state: Any = copy_state) -> None:
            group, order = part.model_param_group_index_map[model_param]
            held = part.optimizer.state[part.optimizer.param_groups[group]["params"][order]]
            copy_state(part, model_param, tensors | {key: held[key] for key in ("step",) if key in held})

        part._set_main_param_and_optimizer_states = keep_step
    optimizer.load_state_dict(state)
    for part in parts:
        del part._set_main_param_and_optimizer_states
        for held in part.optimizer.state.values():
            if "step" in held:
                held["step"] = held["step"].clone()
