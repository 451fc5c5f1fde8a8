"""How far the sampler's log-probabilities and expert choices are from the training forward's, on tokens it has sampled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from megatron_ring.config.sampling import SamplingConfig
from megatron_ring.data.packing import plan_packs
from megatron_ring.errors import UserError
from megatron_ring.model.layout import PackedLayout
from megatron_ring.model.ring_model import RingModel, forward_packed
from megatron_ring.model.routes import NotedRoutes, new_routes
from megatron_ring.parallel.context import ParallelContext
from megatron_ring.sampler.requests import GenerationRequest
from megatron_ring.sampler.sampler import Sampler

NO_TOKEN = -1  # end of sequence: none, so that every response has all its tokens


@dataclass(frozen=True)
class Mismatch:
    """Over N sampled tokens and all layers with experts, of which there is at least one.

    Attributes:
        differences: float64 [N], the trainer's log-probability less the sampler's, in nats; by request, in order.
        routed: pairs of a token and a layer.
        routed_differently: those of them with another set of experts.
        mean_entropy: of the distributions sampled from, in nats.
    """

    differences: torch.Tensor
    routed: int
    routed_differently: int
    mean_entropy: float


def measure_mismatch(
    model: RingModel, context: ParallelContext, sampling: SamplingConfig, requests: Sequence[GenerationRequest],
    train_tokens: int = 8192,
) -> Mismatch:  # fmt: skip
    """Sample all tokens of `requests`, then compute them again as a training step would, packed, with gradients on.

    Args:
        requests: not begun.
        train_tokens: of a packed micro-batch; longer sequences have one of their own.

    Raises:
        UserError: there is more than one process.
    """
    if context.world_size > 1:
        raise UserError(f"{context.world_size} processes: sampler and trainer are compared on one")
    prompts = [len(request.prompt_tokens) for request in requests]
    firsts = [0]  # among all sampled tokens
    for request in requests:
        firsts.append(firsts[-1] + request.max_new_tokens)
    sampler = Sampler(model, context, sampling, NO_TOKEN, note_routes=True)
    completions = sampler.generate(requests)
    sampler.release()
    sequences = [[*request.prompt_tokens, *done.tokens] for request, done in zip(requests, completions, strict=True)]
    lengths = [len(sequence) for sequence in sequences]
    order: list[int] = []
    logprobs, routes = [], []
    for pack in plan_packs(lengths, max(train_tokens, *lengths), seed=0):
        starts = [sum(lengths[i] for i in pack[:n]) for n in range(len(pack))]
        rows = [s + p for s, i in zip(starts, pack, strict=True) for p in range(prompts[i] - 1, lengths[i] - 1)]
        order += [place for i in pack for place in range(firsts[i], firsts[i + 1])]
        found = _trained(model, context, [sequences[i] for i in pack], rows, sampling)
        logprobs.append(found[0].double().cpu())
        routes.append(found[1].cpu())
    in_training = torch.cat(routes)  # [N, L, k]
    in_training = torch.empty_like(in_training).index_copy_(0, torch.tensor(order), in_training)
    noted = bytearray(b"".join(done.routes for done in completions))
    in_sampling = torch.frombuffer(noted, dtype=in_training.dtype).view_as(in_training)
    mine = torch.tensor([value for done in completions for value in done.logprobs], dtype=torch.float64)
    theirs = torch.empty_like(mine).index_copy_(0, torch.tensor(order), torch.cat(logprobs))
    differs = (in_sampling.sort(dim=2).values != in_training.sort(dim=2).values).any(dim=2)
    entropies = [value for done in completions for value in done.entropies]
    return Mismatch(theirs - mine, differs.numel(), int(differs.sum()), sum(entropies) / len(entropies))


def _trained(
    model: RingModel, context: ParallelContext, sequences: list[list[int]], rows: list[int], sampling: SamplingConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each of `rows` of the packed sequences: log-probability of the token behind it, as the loss is told it, fp32 [R];
    and experts [R, L, k]."""
    device = context.device
    tokens = torch.tensor([token for sequence in sequences for token in sequence], device=device)
    positions = torch.tensor([place for sequence in sequences for place in range(len(sequence))], device=device)
    rows_r = torch.tensor(rows, device=device)
    layout = PackedLayout(positions, [len(sequence) for sequence in sequences])
    noted = new_routes(model, len(tokens))
    layout.routes = NotedRoutes(noted, model.route_layers.start)
    found = []

    def token_loss(logprobs: torch.Tensor, entropies: torch.Tensor, _part: slice) -> torch.Tensor:
        found.append(logprobs.detach())
        return -logprobs.sum()

    was_training = model.training
    model.train()
    model.router_losses.start_step(1.0)
    hidden = forward_packed(model, tokens, layout)
    model.output_layer.loss(hidden, rows_r, tokens[rows_r + 1], sampling.temperature or 1.0, token_loss)
    model.train(was_training)
    return torch.cat(found), noted[rows_r]
