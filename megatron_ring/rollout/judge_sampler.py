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


class CheckpointAsked:
    """A model that answers prompts of judges.

    Args:
        positions: of the model: prompt and judgement have to fit.
    """

    def __init__(self, sampler: Sampler, tokenizer: RingTokenizer, positions: int, seed: int) -> None:
        self.sampler, self.tokenizer = sampler, tokenizer
        self._positions, self._seed = positions, seed

    def answer(
        self, prompts: Sequence[str], told: Callable[[str, Reply], None] = lambda prompt, reply: None
    ) -> dict[str, Reply]:  # fmt: skip
        """Replies to this replica's prompts, none of them twice. All ranks call it together, those of a replica alike.

        Args:
            told: of each reply that was sampled, as it comes.
        """
        replies: dict[str, Reply] = {}
        asked, requests = [], []
        for prompt in prompts:
            request = self._request(prompt)
            if isinstance(request, Reply):
                replies[prompt] = request
            else:
                asked.append(prompt)
                requests.append(request)

        def take(place: int, completion: Completion) -> None:
            opened = opens_thinking(self.tokenizer, requests[place].prompt_tokens)
            text, reason = response_text(self.tokenizer, completion), completion.finish_reason
            replies[asked[place]] = Reply(text, COMPLETE if reason in ENDS else str(reason), opened)
            told(asked[place], replies[asked[place]])

        self.sampler.generate(requests, on_finished=take)
        return replies

    def _request(self, prompt: str) -> GenerationRequest | Reply:
        """What the sampler is asked; a reply with a problem where it cannot be."""
        try:
            tokens = self.tokenizer.prompt_tokens(prompt)
        except UserError as error:
            return Reply("", "", problem=f"the judge cannot be asked: {error}")
        new = self.sampler.sampling.max_new_tokens
        if len(tokens) + new > self._positions:
            said = f"a prompt of {len(tokens):,} tokens and {new:,} new ones: the judge has {self._positions:,} positions"
            return Reply("", "", problem=said)
        name = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:8], "big")
        return GenerationRequest(tokens, request_seed(self._seed, name), new, columns=frozenset())


class SamplerJudge:
    """A `judging.protocol.Generate`, called by all ranks together with the same prompts.

    Args:
        report: told the prompts of this replica that are answered, and those asked.
    """

    def __init__(
        self, model: CheckpointAsked, cache: ReplyCache, report: Callable[[int, int], None] = lambda done, asked: None
    ) -> None:  # fmt: skip
        self._model, self._cache, self._report = model, cache, report

    def __call__(self, prompts: Sequence[str]) -> list[Reply]:
        """Raises `UserError` on every rank."""
        distinct = list(dict.fromkeys(prompts))
        found: dict[str, Reply] = collectives.from_main(lambda: self._kept(distinct))
        context, done = self._model.sampler.context, 0
        own = [prompt for prompt in distinct if prompt not in found][context.data_rank :: context.data_size]

        def told(prompt: str, reply: Reply) -> None:
            nonlocal done
            if context.leads_replica:
                self._cache.keep(prompt, reply)
            done += 1
            self._report(done, len(own))

        replies = self._model.answer(own, told)
        for part in collectives.gather_over_world(replies if context.leads_replica else {}):
            found |= part
        return [found[prompt] for prompt in prompts]

    def _kept(self, prompts: Sequence[str]) -> dict[str, Reply]:
        return {prompt: reply for prompt in prompts if (reply := self._cache.find(prompt)) is not None}
