"""What the first requests would wait for, done before them: kernels are compiled, and decoding is captured as CUDA graphs.

A burst of requests passes through many batch sizes on its way to its largest. Each size that comes first costs a forward
pass by single launches and a capture, while all other requests wait.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from megatron_ring.config.sampling import RequestSampling
from megatron_ring.parallel.device import untaken_memory
from megatron_ring.sampler.decoding import GraphKey, span_of
from megatron_ring.sampler.engine import Engine
from megatron_ring.sampler.requests import GenerationRequest

PROMPT = 512  # tokens of a made-up prompt, at most


@dataclass(frozen=True)
class WarmUp:
    """What was done.

    Attributes:
        captured: graphs that there are.
        left: graphs that are captured later, when their batch first comes.
        longest: contexts (tokens) that the captured ones serve in all sizes, cut or not.
        memory: that capturing took of the device (bytes).
    """

    captured: int
    left: int
    longest: int
    memory: int


def keys_of(rows: int, longest: int, size: Callable[[int], int]) -> Iterator[GraphKey]:
    """All graphs that batches of up to `rows` sequences of up to `longest` tokens can ask for. Short contexts first, and
    large batches before small ones: what they take of the graphs' memory serves the small ones too.

    Args:
        size: rows that are computed for so many sequences (`DecodeLoop.size`).
    """
    sizes = sorted({size(count) for count in range(1, rows + 1)}, reverse=True)
    span = span_of(1)
    while True:
        for cuts in (False, True):
            yield from (GraphKey(count, span, cuts) for count in sizes)
        if span >= longest:
            return
        span *= 2


@torch.no_grad()
def warm_up(engine: Engine, enough: Callable[[], bool]) -> WarmUp:
    """Fill as many prompts as one step may, then capture graphs until `enough` says so. All ranks that step with this one
    call it together, before the first request.

    Raises:
        UserError, RuntimeError: there is not memory enough, or the model's logits are not finite.
    """
    _fill(engine)
    runner, edge = engine.runner, engine.edge
    if not runner.graphs:
        return WarmUp(0, 0, 0, 0)
    columns = engine.size.columns * engine.size.page_size
    rows, longest = edge.largest([engine.size.rows, min(runner.model.ring_config.max_positions, columns)])
    keys = list(keys_of(rows, longest, runner.loop().size))
    was_training, untaken = runner.model.training, untaken_memory()
    runner.model.eval()
    done = 0
    try:
        while done < len(keys) and not edge.any_stepping(enough()):
            runner.capture(keys[done])
            done += 1
    finally:
        runner.model.train(was_training)
    later = keys[done].span if done < len(keys) else 2 * keys[-1].span
    left = sum(key not in runner.loop().captured for key in keys)
    longest = later // 2 if later > keys[0].span else 0
    return WarmUp(runner.captured, left, longest, max(0, untaken - untaken_memory()))


def _fill(engine: Engine) -> None:
    """Take steps with made-up prompts, different ones, each filled and decoded once: first as many as a step may fill, then
    few. Kernels are compiled anew where a number of tokens has no factor of 16, and there are others for few tokens."""
    size, vocabulary = engine.size, engine.runner.model.ring_config.vocab_size
    room = min(engine.runner.model.ring_config.max_positions, size.columns * size.page_size) - 1
    length = min(PROMPT, room, engine.sampling.prefill_tokens)
    most = max(1, min(size.rows, size.pages * size.page_size // (2 * PROMPT), engine.sampling.prefill_tokens // PROMPT))
    for count, wanted in ((most, length), (1, length - 10), (1, 18), (2, 17)):
        if engine.leads and 0 < wanted <= length:
            for number in range(count):
                prompt = [(number + place) % vocabulary for place in range(wanted)]
                engine.add(GenerationRequest(prompt, number, 1, sampling=RequestSampling()))
        while not engine.step().idle:
            pass
