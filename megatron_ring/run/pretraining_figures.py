"""The figures of pretraining: of a step, of the router, of validations; and what a run says when it starts."""

from __future__ import annotations

import math
from typing import Any

from megatron_ring.corpus.stream import HeldOut
from megatron_ring.parallel import collectives
from megatron_ring.run.pretraining import PretrainState
from megatron_ring.training.losses import SFTLoss
from megatron_ring.training.trainer import StepResult

WITHOUT_MANIFEST = "; without a manifest, so its tokenizer cannot be checked"


def step_metrics(result: StepResult, seconds: float) -> dict[str, Any]:
    """What a step of so many seconds gave."""
    return {
        "loss": result.mean("loss"),
        "entropy": result.mean("entropy"),
        "grad_norm": result.grad_norm,
        "update/skipped": int(not result.updated),
        "attention": result.attention,
        "loss/balance": result.balance,
        "loss/z": result.z,
        "time/step": seconds,
        "throughput/tokens_per_second": result.routed_tokens / seconds,
    }


def router_metrics(loads: tuple[tuple[float, ...], ...], first_layer: int) -> dict[str, float]:
    """How evenly a step's tokens went to the experts: the largest and smallest load over the mean of each layer, and the
    share of experts that got none; of the worst layer, and of each (from 1). `first_layer`: the first with experts, from
    0."""
    metrics = {}
    for number, load in enumerate(loads, start=first_layer + 1):
        mean = sum(load) / len(load)
        if mean:
            metrics[f"router/load_max/{number}"] = max(load) / mean
            metrics[f"router/load_min/{number}"] = min(load) / mean
            metrics[f"router/idle/{number}"] = sum(one == 0 for one in load) / len(load)
    for name, worst in (("load_max", max), ("load_min", min), ("idle", max)):
        values = [value for key, value in metrics.items() if key.startswith(f"router/{name}/")]
        if values:
            metrics[f"router/{name}"] = worst(values)
    return metrics


def measure(run: PretrainState, held: list[HeldOut], what: str) -> dict[str, float]:
    """Loss (nats per token) and bits per byte of text, of each corpus and of all. All ranks take part."""
    context, reset = run.stage.context, run.config.data.reset_at_document
    metrics, all_nats, all_tokens, all_bytes = {}, 0.0, 0, 0
    for one in held:
        batches = one.batches(reset, run.tokenizer.pad_id, context.data_rank, context.data_size, run.config.sizes)
        result = run.trainer.evaluate(batches, SFTLoss())
        known = f"{what}/{one.name}"
        if known not in run.byte_counts:
            texts = (run.tokenizer.decode(batch.targets[batch.loss_mask].tolist()) for batch in batches)
            mine = sum(len(text.encode(errors="surrogatepass")) for text in texts)
            (run.byte_counts[known],) = collectives.sum_counts_over_data([mine], context.device)
        nats, tokens, size = result.sums["loss"], result.loss_tokens, run.byte_counts[known]
        metrics[f"{what}/loss/{one.name}"] = nats / max(1, tokens)
        if size:
            metrics[f"{what}/bits_per_byte/{one.name}"] = nats / math.log(2) / size
        all_nats, all_tokens, all_bytes = all_nats + nats, all_tokens + tokens, all_bytes + size
    if all_tokens:
        metrics |= {f"{what}/loss": all_nats / all_tokens, f"{what}/tokens": all_tokens}
    if all_bytes:
        metrics[f"{what}/bits_per_byte"] = all_nats / math.log(2) / all_bytes
    return metrics


def describe(run: PretrainState, start: int) -> list[str]:
    """What will be trained, in lines."""
    stream, length = run.stream, run.config.data.sequence_length
    weights = [share.weight for share in stream.blend.shares]
    lines = [
        f"{name}: {one.source.documents:,} documents, {one.source.tokens:,} tokens, {one.per_epoch:,} sequences an epoch, "
        f"{weight / sum(weights):.2%} of the blend{'' if one.source.tokenizer_known else WITHOUT_MANIFEST}"
        for name, one, weight in zip(stream.names, stream.sources, weights, strict=True)
    ]
    for what, held in (("validation", run.validated), ("test", run.tested)):
        measured = {one.name for one in held}
        if what == "validation" and not held:
            lines.append("no corpus has a validated part of a whole sequence: nothing is validated")
        elif held and not run.config.data.validation and (left := [n for n in stream.names if n not in measured]):
            lines.append(f"{what}: {', '.join(left)} left out, no whole sequence is in the part")
    resumed = f", continuing after step {start} and {stream.place.samples:,} sequences" if start else ""
    lines.append(f"{run.steps:,} steps, sequences of {length:,} tokens{resumed}")
    if start >= run.steps:
        lines.append(f"all {run.steps} steps are done: more need more --steps")
    return lines
