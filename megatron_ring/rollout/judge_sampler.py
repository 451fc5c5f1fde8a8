"""A checkpoint as judge, through our own sampler in the processes of the evaluation."""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from megatron_ring.config.evaluate import EvaluateConfig
from megatron_ring.config.model import ModelConfig
from megatron_ring.data.tokenizer import RingTokenizer
from megatron_ring.errors import UserError
from megatron_ring.judging.cache import ReplyCache
from megatron_ring.judging.verdict import COMPLETE, Reply
from megatron_ring.parallel import collectives
from megatron_ring.parallel import context as parallel_context
from megatron_ring.parallel.device import return_unused_memory
from megatron_ring.rollout.texts import opens_thinking, response_text
from megatron_ring.run.stage import open_model, resolve
from megatron_ring.sampler.completion import Completion
from megatron_ring.sampler.requests import GenerationRequest, request_seed
from megatron_ring.sampler.sampler import Sampler

ENDS = ("stop", "stop_token", "stop_string")


@dataclass(frozen=True)
class JudgeModel:
    """A checkpoint that is to judge: its weights are not read yet."""

    config: EvaluateConfig
    shape: ModelConfig
    tokenizer: RingTokenizer

    @classmethod
    def resolve(cls, config: EvaluateConfig) -> JudgeModel:
        """Of an evaluation's flags. All ranks call it. Raises `UserError` that names the judge's flags."""
        judge = config.judge
        assert judge.checkpoint is not None
        # The engine's settings stay; what decides the text is the judge's own.
        sampling = replace(
            config.sampling, temperature=judge.temperature, top_p=1.0, top_k=0, min_p=0.0, max_new_tokens=judge.max_tokens,
            stop_token_ids=(), stop_strings=(), repetition_tokens=0,
        )  # fmt: skip
        tokenizer = judge.tokenizer or config.tokenizer
        template = judge.chat_template or (config.chat_template if judge.tokenizer is None else None)
        asked = replace(
            config, checkpoint=judge.checkpoint, tokenizer=tokenizer, chat_template=template, sampling=sampling,
            instruction=None,
        )  # fmt: skip
        try:
            return cls(*resolve(asked))
        except UserError as error:
            said = str(error).replace("--checkpoint", "--judge.checkpoint")
            if judge.tokenizer is not None:
                said = said.replace("--tokenizer", "--judge.tokenizer")
            raise UserError(said.replace("--sampling.max-new-tokens", "--judge.max-tokens")) from None

    def open(self) -> Sampler:
        """Load it. The model before it has to be gone already; its process groups go here."""
        parallel_context.shutdown(keep_process_group=True)
        gc.collect()
        return_unused_memory()
        stage = open_model(self.config, self.shape, self.config.checkpoint)
        tokenizer = self.tokenizer
        return Sampler(stage.model, stage.context, self.config.sampling, tokenizer.eos_id, tokenizer.decode)


class SamplerJudge:
    """A `judging.protocol.Generate`, called by all ranks together with the same prompts.

    Args:
        positions: of the model: prompt and judgement have to fit.
        report: told the prompts of this replica that are answered, and those asked.
    """

    def __init__(
        self, sampler: Sampler, tokenizer: RingTokenizer, cache: ReplyCache, positions: int, seed: int,
        report: Callable[[int, int], None] = lambda done, asked: None,
    ) -> None:  # fmt: skip
        self._sampler, self._tokenizer, self._cache = sampler, tokenizer, cache
        self._positions, self._seed, self._report = positions, seed, report

    def __call__(self, prompts: Sequence[str]) -> list[Reply]:
        """Raises `UserError` on every rank."""
        distinct = list(dict.fromkeys(prompts))
        found: dict[str, Reply] = collectives.from_main(lambda: self._kept(distinct))
        context = self._sampler.context
        own = [prompt for prompt in distinct if prompt not in found][context.data_rank :: context.data_size]
        replies: dict[str, Reply] = {}
        asked, requests = [], []
        for prompt in own:
            request = self._request(prompt)
            if isinstance(request, Reply):
                replies[prompt] = request
            else:
                asked.append(prompt)
                requests.append(request)

        def take(place: int, completion: Completion) -> None:
            opened = opens_thinking(self._tokenizer, requests[place].prompt_tokens)
            text, reason = response_text(self._tokenizer, completion), completion.finish_reason
            reply = Reply(text, COMPLETE if reason in ENDS else str(reason), opened)
            if context.leads_replica:
                self._cache.keep(asked[place], reply)
            replies[asked[place]] = reply
            self._report(len(replies), len(own))

        self._sampler.generate(requests, on_finished=take)
        for part in collectives.gather_over_world(replies if context.leads_replica else {}):
            found |= part
        return [found[prompt] for prompt in prompts]

    def _kept(self, prompts: Sequence[str]) -> dict[str, Reply]:
        return {prompt: reply for prompt in prompts if (reply := self._cache.find(prompt)) is not None}

    def _request(self, prompt: str) -> GenerationRequest | Reply:
        """What the sampler is asked; a reply with a problem where it cannot be."""
        try:
            tokens = self._tokenizer.prompt_tokens(prompt)
        except UserError as error:
            return Reply("", "", problem=f"the judge cannot be asked: {error}")
        new = self._sampler.sampling.max_new_tokens
        if len(tokens) + new > self._positions:
            said = f"a prompt of {len(tokens):,} tokens and {new:,} new ones: the judge has {self._positions:,} positions"
            return Reply("", "", problem=said)
        name = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:8], "big")
        return GenerationRequest(tokens, request_seed(self._seed, name), new, columns=frozenset())
