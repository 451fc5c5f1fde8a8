"""The parallel layouts that tests run, by name: (processes, layout)."""

from __future__ import annotations

from megatron_ring.config.parallel import ParallelConfig

LAYOUTS: dict[str, tuple[int, ParallelConfig]] = {
    "one": (1, ParallelConfig()),
    "dp2": (2, ParallelConfig()),
    "tp2": (2, ParallelConfig(tensor=2)),
    "ep2": (2, ParallelConfig(expert=2)),
    "pp2": (2, ParallelConfig(pipeline=2)),
    "tp2_etp2": (2, ParallelConfig(tensor=2, expert_tensor=2)),
    "tp2_ep2": (2, ParallelConfig(tensor=2, expert=2)),
}
