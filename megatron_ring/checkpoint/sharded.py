"""megatron-core's sharded state dicts on disk, in torch's distributed-checkpoint format, written in this process.

megatron-core's own writer starts a helper process for every save; torch's writes the same files with threads.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.strategies import torch as mcore_torch


class _WriteInProcess(mcore_torch.TorchDistSaveShardedStrategy):
    """Translate megatron-core's shards to torch's and let torch write them, one file per rank."""

    def save(self, sharded_state_dict: dict[str, Any], checkpoint_dir: Path) -> None:
        renamed, _, _ = mcore_torch._replace_state_dict_keys_with_sharded_keys(
            sharded_state_dict, self.keep_only_main_replica
        )
        dcp.save(
            mcore_torch.mcore_to_pyt_state_dict(renamed, False),
            storage_writer=dcp.FileSystemWriter(checkpoint_dir, sync_files=True),
            planner=mcore_torch.MCoreSavePlanner(
                dedup_replicated_tensors=not self.keep_only_main_replica, flatten_state_dict=False
            ),
        )


def save_sharded(state: dict[str, Any], folder: Path) -> None:
    """Write `state` (sharded tensors, and plain values equal on all ranks) into the existing, empty `folder`."""
    dist_checkpointing.save(state, str(folder), sharded_strategy=_WriteInProcess("torch_dist", 1))


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
