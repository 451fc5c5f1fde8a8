"""The judge of the policy's responses: a frozen checkpoint beside the policy in the same processes, or a server."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from megatron_ring.config.checks import require
from megatron_ring.config.judge import RewardJudgeConfig
from megatron_ring.config.model import ModelConfig
from megatron_ring.config.rewards import RewardConfig
from megatron_ring.data.tokenizer import RingTokenizer
from megatron_ring.errors import UserError
from megatron_ring.judging.cache import cache_of_run
from megatron_ring.judging.server import ServerJudge
from megatron_ring.judging.verdict import Reply
from megatron_ring.model.ring_model import build_model
from megatron_ring.parallel import collectives
from megatron_ring.rollout.judge_sampler import CheckpointAsked
from megatron_ring.rollout.judge_stage import server_of
from megatron_ring.run.stage import Stage, find_weights, resolve_shape, set_first_weights
from megatron_ring.sampler.sampler import Sampler
from megatron_ring.training.frozen import FrozenWeights

SEED = 0  # of the judge's samples: a reply depends on its prompt alone, so that a continued run gets the same


class PolicyJudge(Protocol):
    """A `judging.protocol.Generate` for the prompts of this rank's replica. All ranks call it together."""

    def __call__(self, prompts: Sequence[str]) -> list[Reply]: ...

    def begin(self, prompts: Sequence[str]) -> None:
        """What will be asked; the rank that leads the replica may begin."""
        ...

    def at_hand(self) -> Any:
        """A context in which it can be called."""
        ...


def judge_of(resources: Any) -> PolicyJudge:
    """The judge of a run, the same for all of its domains. All ranks call it.

    Args:
        resources: `rollout.scoring.ScorerResources`.

    Raises:
        UserError: on every rank: it cannot be had.
    """
    found: PolicyJudge | None = resources.shared.get("judge")
    if found is None:
        settings: RewardJudgeConfig = resources.config.judge
        found = _ServerOfReplica(resources) if settings.checkpoint is None else _CheckpointOfReplica(resources)
        resources.shared["judge"] = found
    return found


def judge_shape(config: RewardConfig) -> ModelConfig:
    """The shape of the judging checkpoint. Raises `UserError`."""
    assert config.judge.checkpoint is not None
    said = f"--rewards.judge.checkpoint {config.judge.checkpoint}"
    try:
        shape = resolve_shape(None, config.judge.checkpoint)
    except UserError as error:
        raise UserError(f"--rewards.judge.checkpoint: {error}") from None
    require(shape.head == "vocabulary", f"{said}: a reward model, which has no language head: give a language model")
    new = config.judge.max_tokens
    room = f"{shape.max_positions:,} positions, --rewards.judge.max-tokens {new:,} leaves no room for a prompt"
    require(new < shape.max_positions, f"{said}: {room}")
    return shape


class _CheckpointOfReplica:
    """Under the policy's layout and in its dtype, through a sampler of its own. The policy's cache makes way for the
    judge's, which goes again."""

    def __init__(self, resources: Any) -> None:
        settings, context, policy = resources.config.judge, resources.context, resources.sampler
        folder = collectives.from_main(functools.partial(find_weights, settings.checkpoint))
        shape = collectives.from_main(functools.partial(judge_shape, resources.config))
        tokenizer: RingTokenizer = resources.tokenizer
        if settings.tokenizer is not None:
            tokenizer = RingTokenizer.load(settings.tokenizer, settings.chat_template)
        said = f"--rewards.judge.checkpoint {settings.checkpoint}"
        known = tokenizer.vocab_size
        require(known <= shape.vocab_size, f"{said}: {shape.vocab_size} tokens, its tokenizer has {known}")
        context.config.check(shape, context.world_size)
        model = build_model(shape, context, dtype=policy.model.config.params_dtype).requires_grad_(False).eval()
        set_first_weights(Stage(context, model, shape), folder, seed=0)
        # The engine's settings stay; what decides the text is the judge's own.
        sampling = replace(
            policy.sampling.plain, temperature=settings.temperature, top_p=1.0, top_k=0, min_p=0.0,
            max_new_tokens=settings.max_tokens, max_batch="auto", kv_tokens=None, stop_token_ids=(), stop_strings=(),
            repetition_tokens=0,
        )  # fmt: skip
        self._policy = policy
        self._sampler = Sampler(model, context, sampling, tokenizer.eos_id, tokenizer.decode)
        self._asked = CheckpointAsked(self._sampler, tokenizer, shape.max_positions, SEED)
        self._weights = FrozenWeights(model, resources.config.offload)

    def __call__(self, prompts: Sequence[str]) -> list[Reply]:
        replies = self._asked.answer(list(dict.fromkeys(prompts)))
        return [replies[prompt] for prompt in prompts]

    def begin(self, prompts: Sequence[str]) -> None:
        """Nothing: the processes are at work with the sampling."""

    @contextmanager
    def at_hand(self) -> Iterator[None]:
        self._policy.release()
        with self._weights.present():
            try:
                yield
            finally:
                self._sampler.release()  # with the graphs that name the weights


class _ServerOfReplica:
    """Asked by the leader of each replica, which shares the limits with the others. Its replies are the leader's alone,
    whose rewards alone count."""

    def __init__(self, resources: Any) -> None:
        settings: RewardJudgeConfig = resources.config.judge
        self._context = resources.context
        replicas = self._context.data_size
        server, rate = server_of(settings), settings.requests_per_minute
        folder: Path | None = settings.cache or resources.folder
        cache = None if folder is None else cache_of_run(folder, server.identity())
        self._server = ServerJudge(
            replace(
                server, concurrency=-(-server.concurrency // replicas),
                requests_per_minute=None if rate is None else rate / replicas,
            ),
            cache,
        )  # fmt: skip
        collectives.from_main(self._server.check)

    def __call__(self, prompts: Sequence[str]) -> list[Reply]:
        replies, problem = [Reply("", "", problem="asked by the replica's leader")] * len(prompts), None
        if self._context.leads_replica:
            try:
                replies = self._server(prompts)
            except UserError as error:
                problem = str(error)
        problems = [other for other in collectives.gather_over_world(problem) if other is not None]
        if problems:
            raise UserError(problems[0])
        return replies

    def begin(self, prompts: Sequence[str]) -> None:
        if self._context.leads_replica:
            self._server.begin(prompts)

    @contextmanager
    def at_hand(self) -> Iterator[None]:
        yield
