"""How far the sampler's log-probabilities and expert choices are from the training forward's, on tokens it has sampled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from megatron_ring.config import SamplingConfig
from megatron_ring.data.packing import plan_packs
from megatron_ring.errors import UserError
from megatron_ring.model.layout import PackedLayout
from megatron_ring.model.ring_model import RingModel, forward_packed
from megatron_ring.model.router import RingRouter
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


class _Choices:
    """Experts of tokens of packed forward passes. `taken`: rows that are of interest."""

    def __init__(self) -> None:
        self.taken = torch.zeros(0, dtype=torch.int64)
        self.by_layer: dict[int, list[torch.Tensor]] = {}

    def __call__(self, layer: int, experts_tk: torch.Tensor) -> None:
        sets = experts_tk[self.taken].sort(dim=1).values.to(torch.int16)
        self.by_layer.setdefault(layer, []).append(sets)

    def gathered(self, order: torch.Tensor) -> torch.Tensor:
        """int16 [layers, N, k], the token taken n-th at place order[n]."""
        taken = torch.stack([torch.cat(self.by_layer[layer]) for layer in sorted(self.by_layer)]).cpu()
        return torch.empty_like(taken).index_copy_(1, order, taken)

    @contextmanager
    def of(self, model: RingModel) -> Iterator[None]:
        """Listen to the model's routers."""
        routers = [module for module in model.modules() if isinstance(module, RingRouter)]
        for router in routers:
            router.on_choice = self
        try:
            yield
        finally:
            for router in routers:
                router.on_choice = None


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
    sampler = Sampler(model, context, sampling, NO_TOKEN)
    choices = sampler.record_choices()
    completions = sampler.generate(requests)
    choices.stop()
    sampler.release()
    chosen = choices.of_tokens()
    asked = [(i, p) for i, request in enumerate(requests) for p in range(request.max_new_tokens)]
    in_sampling = torch.stack([chosen[i, prompts[i] - 1 + p] for i, p in asked], dim=1).sort(dim=2).values

    sequences = [[*request.prompt_tokens, *done.tokens] for request, done in zip(requests, completions, strict=True)]
    lengths = [len(sequence) for sequence in sequences]
    trained, logprobs = _Choices(), []
    order: list[int] = []
    with trained.of(model):
        for pack in plan_packs(lengths, max(train_tokens, *lengths), seed=0):
            starts = [sum(lengths[i] for i in pack[:n]) for n in range(len(pack))]
            rows = [s + p for s, i in zip(starts, pack, strict=True) for p in range(prompts[i] - 1, lengths[i] - 1)]
            order += [place for i in pack for place in range(firsts[i], firsts[i + 1])]
            logprobs.append(_trained_logprobs(model, context, [sequences[i] for i in pack], rows, sampling, trained))
    in_training = trained.gathered(torch.tensor(order))
    mine = torch.tensor([value for done in completions for value in done.logprobs], dtype=torch.float64)
    theirs = torch.empty_like(mine).index_copy_(0, torch.tensor(order), torch.cat(logprobs).double().cpu())
    differs = (in_sampling != in_training).any(dim=2)
    entropies = [value for done in completions for value in done.entropies]
    return Mismatch(theirs - mine, differs.numel(), int(differs.sum()), sum(entropies) / len(entropies))


def _trained_logprobs(
    model: RingModel, context: ParallelContext, sequences: list[list[int]], rows: list[int], sampling: SamplingConfig,
    choices: _Choices,
) -> torch.Tensor:  # fmt: skip
    """fp32 [R]: log-probability of the token behind each of `rows` of the packed sequences, as the loss is told it."""
    device = context.device
    tokens = torch.tensor([token for sequence in sequences for token in sequence], device=device)
    positions = torch.tensor([place for sequence in sequences for place in range(len(sequence))], device=device)
    rows_r = choices.taken = torch.tensor(rows, device=device)
    found = []

    def token_loss(logprobs: torch.Tensor, entropies: torch.Tensor, _part: slice) -> torch.Tensor:
        found.append(logprobs.detach())
        return -logprobs.sum()

    was_training = model.training
    model.train()
    model.router_losses.start_step(1.0)
    hidden = forward_packed(model, tokens, PackedLayout(positions, [len(sequence) for sequence in sequences]))
    model.output_layer.loss(hidden, rows_r, tokens[rows_r + 1], sampling.temperature or 1.0, token_loss)
    model.train(was_training)
    return torch.cat(found)
