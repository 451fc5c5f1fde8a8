"""A loaded model against expected logits, hidden states and router logits, under any parallel layout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from megatron_ring.model.layout import PackedLayout
from megatron_ring.model.ring_model import RingModel, forward_all_stages
from megatron_ring.parallel import collectives
from megatron_ring.parallel.context import ParallelContext


def largest_differences(model: RingModel, context: ParallelContext, expected: dict[str, torch.Tensor]) -> dict[str, float]:
    """Run `expected["input_ids"]` and compare everything that `expected` holds; all ranks take part and get the same.

    Args:
        expected: input_ids int64 [B, S]; logits [B, S, vocab]; optionally hidden_states [layers + 1, B, S, hidden] (the
            embeddings, each layer's output, the last one after the final norm) and router_logits [MoE layers, B, S, E].

    Returns:
        Largest |difference|: "logits", "hidden_states/0" …, "router_logits/0" …; NaN where anything is not a number.
    """
    tokens = expected["input_ids"].to(context.device)
    sequences, length = tokens.shape
    found: dict[str, float] = {}

    def compare(name: str, value: torch.Tensor, wanted: torch.Tensor) -> None:
        found[name] = float((value.float().cpu() - wanted.float()).abs().max())

    def watch_tokens(name: str, wanted_bsd: torch.Tensor, pick: Callable[[Any], torch.Tensor]) -> Callable[..., None]:
        """Compare a module's output [T or T/TP, …, d]: under sequence parallelism each rank has its part of the tokens."""

        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            value = pick(output).detach().flatten(0, -2)
            wanted_td = wanted_bsd.flatten(0, 1)
            parts = wanted_td.shape[0] // value.shape[0]
            compare(name, value, wanted_td.chunk(parts)[context.tensor_rank if parts > 1 else 0])

        return hook

    hooks = []
    if "hidden_states" in expected:
        watched = [(layer.layer_number, layer) for layer in model.decoder.layers]
        watched = [(number, layer) for number, layer in watched if number < model.ring_config.num_layers]
        if model.first_stage:
            watched.append((0, model.embedding))
        if model.last_stage:
            watched.append((model.ring_config.num_layers, model.decoder.final_layernorm))
        for number, module in watched:
            wanted = expected["hidden_states"][number]
            hooks.append(module.register_forward_hook(watch_tokens(f"hidden_states/{number}", wanted, _first)))
    if "router_logits" in expected:
        for layer in model.decoder.layers:
            number = layer.layer_number - 1 - model.ring_config.first_dense_layers
            if number >= 0:
                wanted = expected["router_logits"][number]
                hook = watch_tokens(f"router_logits/{number}", wanted, lambda output: output[2])
                hooks.append(layer.mlp.router.register_forward_hook(hook))
    layout = PackedLayout(torch.arange(length, device=context.device).repeat(sequences), [length] * sequences)
    try:
        logits_tv = forward_all_stages(model.eval(), tokens.flatten(), layout)
    finally:
        for hook_handle in hooks:
            hook_handle.remove()
    if logits_tv is not None:
        first = context.tensor_rank * logits_tv.shape[1]
        wanted = expected["logits"].flatten(0, 1)[:, first : first + logits_tv.shape[1]]
        compare("logits", logits_tv[:, : wanted.shape[1]], wanted)
    everyone = collectives.gather_over_world(found)
    names = sorted({name for part in everyone for name in part})
    return {name: max((part[name] for part in everyone if name in part), key=_nan_first) for name in names}


def _first(output: Any) -> torch.Tensor:
    return output[0] if isinstance(output, tuple) else output


def _nan_first(value: float) -> float:
    return float("inf") if value != value else value
