"""What bench_train.py gives its contenders to do, and how a step's phases are timed."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal, Protocol

import torch

from megatron_ring.config.model import ModelConfig


@dataclass(frozen=True, eq=False)
class PackedTokens:
    """One micro-batch: sequences one after another, every token counted in the loss. Random, on the device.

    tokens, targets: int64 [T]. lengths: of the sequences, T together.
    """

    tokens: torch.Tensor
    targets: torch.Tensor
    lengths: tuple[int, ...]

    @property
    def positions(self) -> torch.Tensor:
        """int64 [T], restarting at 0 in each sequence."""
        return torch.cat([torch.arange(length) for length in self.lengths]).to(self.tokens.device)

    @property
    def bounds(self) -> torch.Tensor:
        """int32 [S + 1]: where sequences begin and end."""
        return torch.tensor([0, *accumulate(self.lengths)], dtype=torch.int32, device=self.tokens.device)

    def padded(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """For those that cannot pack: batches (tokens, targets) of sequences of similar length, int64 [S, L], none of more
        cells than the micro-batch has tokens. Behind the end of a sequence stand 0 and, as the target, -100."""
        pieces = list(zip(self.tokens.split(self.lengths), self.targets.split(self.lengths), strict=True))
        pieces.sort(key=lambda piece: -piece[0].numel())
        batches = []
        while pieces:
            rows = max(1, self.tokens.numel() // pieces[0][0].numel())
            part, pieces = pieces[:rows], pieces[rows:]
            fill = [torch.nn.utils.rnn.pad_sequence([piece[i] for piece in part], batch_first=True, padding_value=value)
                    for i, value in ((0, 0), (1, -100))]  # fmt: skip
            batches.append((fill[0], fill[1]))
        return batches


def draw_lengths(kind: Literal["equal", "long-tail"], sequences: int, longest: int, seed: int) -> tuple[int, ...]:
    """Lengths of `sequences * longest` tokens: all `longest`, or log-normal (median longest / 8, sigma 1) up to it."""
    if kind == "equal":
        return (longest,) * sequences
    rng = random.Random(seed)
    left, lengths = sequences * longest, []
    while left:
        length = min(left, longest, max(min(16, longest), round(longest / 8 * math.exp(rng.gauss(0, 1)))))
        lengths.append(length)
        left -= length
    return tuple(lengths)


def draw_tokens(lengths: tuple[int, ...], vocab_size: int, seed: int, device: torch.device) -> PackedTokens:
    """A micro-batch of random tokens and random targets."""
    generator = torch.Generator().manual_seed(seed)
    tokens, targets = torch.randint(vocab_size, (2, sum(lengths)), generator=generator).to(device)
    return PackedTokens(tokens, targets, lengths)


def training_flops(shape: ModelConfig, lengths: Sequence[int]) -> float:
    """Floating-point operations of forward and backward of sequences of these lengths: 6 per weight that multiplies a
    token (2 forward, 4 backward), and attention's two products, causal ones counted half. Recomputation is not counted."""
    heads = shape.num_attention_heads * shape.head_dim
    attention = shape.hidden_size * (shape.qkv_rows + heads)
    shared = shape.hidden_size * (3 * shape.shared_width + shape.num_experts)
    experts = 3 * shape.hidden_size * shape.expert_width * shape.experts_per_token
    moe_layers = shape.num_layers - shape.first_dense_layers
    weights = shape.num_layers * attention + moe_layers * (shared + experts)
    weights += shape.first_dense_layers * 3 * shape.hidden_size * shape.dense_width + shape.hidden_size * shape.vocab_size
    pairs = sum(length * length / 2 for length in lengths)
    return 6.0 * weights * sum(lengths) + shape.num_layers * 12.0 * heads * pairs


class Clock:
    """Adds up the device's time between marks, by phase; on CUDA with events, so that nothing waits."""

    def __init__(self) -> None:
        self._cuda = torch.cuda.is_available()
        self._marks: list[tuple[str, Any]] = []

    def _now(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def start(self) -> None:
        """Forget all marks; the first phase begins."""
        self._marks = [("", self._now())]

    def end(self, phase: str) -> None:
        """What happened since the last mark was this phase's."""
        self._marks.append((phase, self._now()))

    @property
    def last(self) -> str:
        """The phase that ended last."""
        return self._marks[-1][0]

    def milliseconds(self) -> dict[str, float]:
        """By phase, since `start`. Waits for the device."""
        if self._cuda:
            torch.cuda.synchronize()
        totals: dict[str, float] = {}
        for (_, before), (phase, after) in zip(self._marks, self._marks[1:], strict=False):
            passed = before.elapsed_time(after) if self._cuda else (after - before) * 1000
            totals[phase] = totals.get(phase, 0.0) + passed
        return totals


class Contender(Protocol):
    """A model with one training step, which marks its phases: forward, backward, optimizer."""

    def step(self, clock: Clock) -> float | torch.Tensor:
        """Train on all micro-batches; the mean loss over their tokens."""
        ...


class PlainStep:
    """Forward and backward of each micro-batch into `.grad`, which is None before; then, if asked for, a clipped update.

    losses: one function for each micro-batch (or part of one), its share of the mean loss over all tokens.
    """

    def __init__(
        self, model: torch.nn.Module, losses: Sequence[Callable[[], torch.Tensor]], optimizer: Any = None, clip: float = 1.0
    ) -> None:
        self.model, self.losses, self.optimizer, self.clip = model, losses, optimizer, clip

    def step(self, clock: Clock) -> torch.Tensor:
        self.model.zero_grad(set_to_none=True)
        total: Any = 0.0
        for compute in self.losses:
            loss = compute()
            clock.end("forward")
            loss.backward()
            clock.end("backward")
            total = total + loss.detach()
        if self.optimizer is not None:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
            self.optimizer.step()
            clock.end("optimizer")
        return total


@torch.no_grad()
def fill_with_noise(model: torch.nn.Module, std: float) -> None:
    """Random weights as at the start of a training: matrices normal, norms 1, biases 0."""
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            parameter.normal_(0.0, std)
        else:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
