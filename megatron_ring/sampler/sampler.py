"""Batched, KV-cached generation over the live training model, under any parallel layout.

Every rank of a data-parallel replica holds the same queue and sees the same sampled tokens, so their queues stay equal.
Ranks that share experts (EP) run forward passes together: one without work takes part with padding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate

import torch

from megatron_ring.config import SamplingConfig
from megatron_ring.errors import UserError
from megatron_ring.model.layout import TokenLayout
from megatron_ring.model.logprobs import token_statistics
from megatron_ring.model.ring_model import RingModel, forward_all_stages
from megatron_ring.parallel import collectives
from megatron_ring.parallel.context import ParallelContext
from megatron_ring.sampler.cache import DecodeLayout, KVCache, PrefillLayout
from megatron_ring.sampler.requests import ActiveSequence, Completion, GenerationRequest, Queue
from megatron_ring.sampler.sampling import draw_tokens, uniforms

PREFILL_TOKENS = 16_384


class Sampler:
    """Draws responses from `model` as it is now; nothing is copied from it and nothing kept but the cache's memory."""

    def __init__(self, model: RingModel, context: ParallelContext, sampling: SamplingConfig, eos_id: int) -> None:
        self.model, self.context, self.sampling, self.eos_id = model, context, sampling, eos_id
        self._cache: KVCache | None = None

    def weights_changed(self) -> None:
        """The weights have moved: cached keys and values are of another model. Frees them."""
        self._cache = None

    @torch.no_grad()
    def generate(
        self,
        requests: Sequence[GenerationRequest],
        on_progress: Callable[[int], None] | None = None,
        on_finished: Callable[[int, Completion], None] | None = None,
    ) -> list[Completion]:
        """Complete this data-parallel replica's requests, in order. All ranks of the run call it together.

        Args:
            requests: may be empty on some replicas. All ranks of one replica must bring the same ones.
            on_progress: told the number of finished requests after each decoding step.
            on_finished: given each completion when it is done, with its place among the requests. Must not raise:
                other ranks would wait.

        Raises:
            UserError: a prompt and its longest response exceed the model's positions.
        """
        self._check(requests)
        was_training = self.model.training
        self.model.eval()
        queue = Queue(requests, self.sampling.max_batch, PREFILL_TOKENS)
        cache = self._cache_for(requests)
        try:
            while self._anyone(bool(queue.waiting or queue.active)):
                admitted = queue.admit()
                if self._anyone(bool(admitted)):
                    self._prefill(admitted, len(queue.active) - len(admitted), cache)
                    cache.move(queue.retire())
                if self._anyone(bool(queue.active)):
                    self._decode(queue.active, cache)
                    cache.move(queue.retire())
                for index, completion in queue.take_finished():
                    if on_finished is not None:
                        on_finished(index, completion)
                if on_progress is not None:
                    on_progress(len(requests) - len(queue.waiting) - len(queue.active))
        finally:
            self.model.train(was_training)
        return queue.results()

    def _check(self, requests: Sequence[GenerationRequest]) -> None:
        limit = self.model.ring_config.max_positions
        for request in requests:
            needed = len(request.prompt_tokens) + request.max_new_tokens
            if needed > limit:
                raise UserError(
                    f"a prompt of {len(request.prompt_tokens)} tokens and {request.max_new_tokens} new ones exceed the "
                    f"model's {limit} positions: lower --sampling.max-new-tokens"
                )

    def _anyone(self, here: bool) -> bool:
        """Whether any rank that shares forward passes with this one has work."""
        if self.context.config.expert == 1:
            return here
        return collectives.max_over_data(int(here), self.context.device) > 0

    def _cache_for(self, requests: Sequence[GenerationRequest]) -> KVCache:
        config = self.model.ring_config
        positions = max((len(r.prompt_tokens) + r.max_new_tokens for r in requests), default=1)
        slots = max(1, min(self.sampling.max_batch, len(requests)))
        held = self._cache
        if held is None or held.positions < positions or held.keys.shape[1] < slots:
            self._cache = None  # free before taking more
            self._cache = KVCache(
                first_layer=self.model.local_layers.start,
                layers=len(self.model.local_layers),
                slots=slots,
                kv_heads=config.num_key_value_heads // self.context.config.tensor,
                positions=positions,
                head_dim=config.head_dim,
                dtype=next(self.model.parameters()).dtype,
                device=self.context.device,
            )
        assert self._cache is not None
        return self._cache

    def _padded(self, count: int) -> int:
        """Tokens of a forward pass: at least one, and the same number for every tensor-parallel rank."""
        tensor = self.context.config.tensor
        return max(1, -(-count // tensor)) * tensor

    def _prefill(self, admitted: list[ActiveSequence], first_slot: int, cache: KVCache) -> None:
        prompts = [sequence.request.prompt_tokens for sequence in admitted]
        real = sum(len(prompt) for prompt in prompts)
        padding = self._padded(real) - real
        lengths = [len(prompt) for prompt in prompts]
        tokens = [token for prompt in prompts for token in prompt] + [self.eos_id] * padding
        positions = [position for length in lengths for position in range(length)] + [0] * padding
        slots = [first_slot + i for i, length in enumerate(lengths) for _ in range(length)]
        layout = PrefillLayout(self._tensor(positions), lengths, self._tensor(slots), cache)
        ends = [end - 1 for end in accumulate(lengths)]
        self._forward_and_sample(admitted, tokens, layout, ends)

    def _decode(self, active: list[ActiveSequence], cache: KVCache) -> None:
        size = self._padded(len(active))
        tokens = [sequence.tokens[-1] for sequence in active] + [self.eos_id] * (size - len(active))
        positions = [sequence.next_position for sequence in active]
        longest = max(positions, default=0) + 1
        layout = DecodeLayout(self._tensor(positions + [0] * (size - len(active))), len(active), longest, cache)
        self._forward_and_sample(active, tokens, layout, list(range(len(active))))

    def _tensor(self, values: list[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self.context.device)

    def _forward_and_sample(
        self, sequences: list[ActiveSequence], tokens: list[int], layout: TokenLayout, rows: list[int]
    ) -> None:
        """One forward pass through all pipeline stages; then one token for each sequence, from its row of logits."""
        model, context = self.model, self.context
        logits_nv = forward_all_stages(model, self._tensor(tokens), layout, self._tensor(rows))
        if not sequences:
            return
        sampled = torch.empty(3, len(sequences), dtype=torch.float64, device=context.device)
        if logits_nv is not None:
            sampled = self._sample(sequences, logits_nv)
        ids, logprobs, entropies = collectives.broadcast_from_last_stage(sampled).tolist()
        for sequence, token, logprob, entropy in zip(sequences, ids, logprobs, entropies, strict=True):
            sequence.append(int(token), logprob, entropy, self.eos_id)

    def _sample(self, sequences: list[ActiveSequence], logits_nv: torch.Tensor) -> torch.Tensor:
        """float64 [3, N]: token ids, their log-probabilities, entropies; both under softmax(logits / temperature)
        before any nucleus (temperature 1 for greedy decoding): what a training forward computes."""
        seeds = self._tensor([sequence.request.seed for sequence in sequences])
        positions = self._tensor([len(sequence.tokens) for sequence in sequences])
        whole = collectives.gather_over_tensor(logits_nv)
        temperature = self.sampling.temperature
        ids = draw_tokens(whole, uniforms(seeds, positions), temperature, self.sampling.top_p)
        first = self.context.tensor_rank * logits_nv.shape[1]
        found = token_statistics(logits_nv, ids, first, temperature or 1.0)
        return torch.stack((ids.double(), found.logprobs.double(), found.entropies.double()))
