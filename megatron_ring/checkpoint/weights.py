"""Fill the local model from published tensors, whatever the parallel layout: from a file or from seeded noise.

Where a local weight stands in its global tensor is read from megatron-core's own description of it, the one by which
checkpoints are written.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from megatron_ring.checkpoint.fast_files import cores
from megatron_ring.checkpoint.pieces import Piece, weight_pieces
from megatron_ring.checkpoint.tensor_rules import Rule, rules_for
from megatron_ring.config.declarations import SCORE, VOCABULARY_TABLES
from megatron_ring.config.model import ModelConfig
from megatron_ring.model.ring_model import RingModel

TensorSource = Callable[[str], torch.Tensor]
MOST_THREADS = 8  # each holds a tensor: of Ring-lite's tables 1 GB


@torch.no_grad()
def fill_from(source: TensorSource, model: RingModel, shape: ModelConfig | None = None, threads: int = 1) -> None:
    """Set every local weight from the published tensors that `source(name)` returns; one at a time, each asked for once
    and only where this process holds a part of it. Rows behind the vocabulary become 0. Buffers that have no published name
    stay as their modules made them.

    Args:
        shape: of what `source` has, where the model's was made from it (`ModelOptions.extended`); default: the model's.
        threads: how many ask `source` at a time.

    Raises:
        RuntimeError: the rules do not cover every local weight exactly once (a bug, never the user's mistake).
    """
    for name, parameter in model.named_parameters():
        if name in VOCABULARY_TABLES:
            parameter.zero_()
    by_target: dict[str, list[Piece]] = {}
    missing: dict[str, int] = {}
    rules = rules_for(shape or model.ring_config)
    targets = {rule.target for rule in rules}
    for piece in weight_pieces(model):
        if piece.buffer and piece.key not in targets:
            continue
        by_target.setdefault(piece.key, []).append(piece)
        missing[piece.key] = missing.get(piece.key, 0) + piece.data.numel()
    every = [
        (rule, [(p, meet) for p in by_target.get(rule.target, []) if (meet := rule.box.meet(p.box)) is not None])
        for rule in rules
    ]
    held = [(rule, parts) for rule, parts in every if parts]
    for (rule, parts), published in zip(held, _asked(source, [rule.source for rule, _ in held], threads), strict=True):
        content = rule.to_ours(published)
        for piece, meet in parts:
            target = piece.data[meet.slices(piece.box)]
            target.copy_(content[meet.slices(rule.box)])
            missing[rule.target] -= target.numel()
    wrong = {key: left for key, left in missing.items() if left}
    if wrong:
        raise RuntimeError(f"tensor rules and model differ in {wrong} elements")


def _asked(source: TensorSource, names: list[str], threads: int) -> Iterator[torch.Tensor]:
    """The tensors of these names, in order; so many are asked for ahead."""
    if threads == 1:
        yield from map(source, names)
        return
    with ThreadPoolExecutor(threads) as pool:
        ahead: deque[Future[torch.Tensor]] = deque()
        for name in names:
            ahead.append(pool.submit(source, name))
            if len(ahead) > threads:
                yield ahead.popleft().result()
        yield from (tensor.result() for tensor in ahead)


def initialize_weights(model: RingModel, seed: int) -> None:
    """Random weights: matrices normal(0, init_std), norms 1, biases 0, a score normal(0, 1 / (hidden + 1)). Each published
    tensor is drawn from its own generator, seeded by (seed, name): the model is the same under every layout."""
    rules = {rule.source: rule for rule in rules_for(model.ring_config)}
    threads = min(MOST_THREADS, cores())  # one core draws some 200 million numbers a second
    fill_from(lambda name: draw(rules[name], model.ring_config.init_std, seed), model, threads=threads)


def new_score(model: ModelConfig, seed: int) -> torch.Tensor:
    """A score that knows nothing yet, fp32 [1, hidden]: as `initialize_weights` draws it."""
    return draw(next(rule for rule in rules_for(model) if rule.target == SCORE), model.init_std, seed)


def draw(rule: Rule, std: float, seed: int) -> torch.Tensor:
    """The random start of one published tensor, fp32."""
    if rule.kind == "score":
        std = 1.0 / (rule.shape[1] + 1)
    elif rule.kind != "matrix":
        return torch.ones(rule.shape) if rule.kind == "norm" else torch.zeros(rule.shape)
    digest = hashlib.sha256(f"{seed}:{rule.source}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return torch.empty(rule.shape).normal_(0.0, std, generator=generator)
