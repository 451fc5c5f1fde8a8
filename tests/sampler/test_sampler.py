"""Generation against full forward passes of the training path, alone and under every layout."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ring.config.parallel import ParallelConfig
from megatron_ring.config.sampling import SamplingConfig
from tests.layouts import LAYOUTS
from tests.sampler.generating import EOS, TIGHT, full_forward, generate, groups, make, prompts


def greedy_and_sampled() -> dict[str, float]:
    from megatron_ring.model.logprobs import token_statistics
    from megatron_ring.sampler.row_settings import RowSettings, numbers_of
    from megatron_ring.sampler.sampling import processed

    model, here = make(ParallelConfig())
    asked = prompts(13)
    greedy = generate(model, here, SamplingConfig(temperature=0.0, max_batch=5, max_new_tokens=24), 13, 24)
    wrong = 0
    logits = full_forward(model, [[*p, *c.tokens] for p, c in zip(asked, greedy, strict=True)])
    for prompt, completion, rows in zip(asked, greedy, logits, strict=True):
        assert list(completion.processed_logprobs) == [0.0] * len(completion.tokens)
        for i, token in enumerate(completion.tokens):
            wrong += int(rows[len(prompt) + i - 1].argmax()) != token
    cut = SamplingConfig(temperature=0.8, top_p=0.9, top_k=40, min_p=0.02, max_batch=4, max_new_tokens=24)
    sampled = generate(model, here, cut, 13, 24)
    logits = full_forward(model, [[*p, *c.tokens] for p, c in zip(asked, sampled, strict=True)])
    difference = 0.0
    for prompt, completion, rows in zip(asked, sampled, logits, strict=True):
        at, tokens = rows[len(prompt) - 1 : -1], torch.tensor(completion.tokens)
        trained = token_statistics(at, tokens, 0, 0.8)
        kept = processed(at, RowSettings.of([numbers_of(cut)] * len(at), cuts=True))
        drawn_from = (kept / kept.sum(-1, keepdim=True)).gather(1, tokens[:, None])[:, 0].log()
        for found, wanted in (
            (completion.logprobs, trained.logprobs),
            (completion.entropies, trained.entropies),
            (completion.processed_logprobs, drawn_from),
        ):
            difference = max(difference, (torch.tensor(found) - wanted).abs().max().item())
        assert all(a <= b + 1e-6 for a, b in zip(completion.logprobs, completion.processed_logprobs, strict=True))
    stopped = sum(c.finish_reason == "stop" for c in sampled)
    assert all((c.tokens[-1] == EOS) == (c.finish_reason == "stop") for c in sampled)
    assert all(EOS not in c.tokens[:-1] for c in sampled)
    return {"wrong": wrong, "difference": difference, "tokens": sum(len(c.tokens) for c in greedy), "stopped": stopped}


@pytest.mark.distributed
def test_greedy_is_the_argmax_and_logprobs_are_the_training_forwards(run_on) -> None:
    (found,) = run_on(1, greedy_and_sampled)
    assert found["tokens"] > 100
    assert found["wrong"] == 0
    assert found["difference"] < 1e-5


def settings_do_not_matter() -> dict[str, int]:
    from megatron_ring.sampler.sampler import Sampler

    model, here = make(ParallelConfig())
    samples = [3, 1, 4, 2, 1]
    requests = groups(samples)
    wanted = [c.tokens for c in Sampler(model, here, SamplingConfig(top_p=0.9), EOS).generate(requests)]
    counts = {"runs": 0, "preemptions": 0}
    longest = max(len(r.prompt_tokens) for r in requests) + 16

    @settings(max_examples=25, deadline=None, database=None, derandomize=True)
    @given(
        batch=st.integers(1, 12), page=st.sampled_from([1, 3, 8, 64]), chunk=st.sampled_from([1, 5, 8192]),
        more=st.integers(0, 80), order=st.permutations(range(len(requests))), kept=st.integers(1, len(requests)),
        horizon=st.sampled_from([1, 3, 8]), flies=st.booleans(),
    )  # fmt: skip
    def check(
        batch: int, page: int, chunk: int, more: int, order: list[int], kept: int, horizon: int, flies: bool
    ) -> None:  # fmt: skip
        tokens = -(-longest // page) * page + more
        sampling = SamplingConfig(top_p=0.9, max_batch=batch, page_size=page, prefill_tokens=chunk, kv_tokens=tokens)
        sampler = Sampler(model, here, sampling, EOS)
        sampler.horizon, sampler.runner.flies, sampler.runner.overlaps = horizon, flies, kept % 2 == 1
        engines = []
        open_engine = sampler._open
        sampler._open = lambda *about: engines.append(open_engine(*about)) or engines[0]
        found = sampler.generate([requests[i] for i in order[:kept]])
        assert [c.tokens for c in found] == [wanted[i] for i in order[:kept]]
        counts["runs"] += 1
        counts["preemptions"] += engines[0].scheduler.preemptions

    check()
    return counts


@pytest.mark.slow
@pytest.mark.distributed
def test_a_response_depends_on_its_seed_alone(run_on) -> None:
    """Neither on the batch, nor on pages, chunks, order and preemption, nor on how many tokens are decoded in a row, nor on
    whether the next are launched before they have landed, nor on whether shared experts run beside the others."""
    (counts,) = run_on(1, settings_do_not_matter)
    assert counts["runs"] >= 20 and counts["preemptions"] > 20


def sampled_under(
    parallel: ParallelConfig, sampling: SamplingConfig, horizon: int = 1, flies: bool = False
) -> tuple[int, list[Any]]:
    from megatron_ring.sampler.sampler import Sampler

    model, here = make(parallel)
    requests = groups([3, 1, 2, 2, 1])
    sampler = Sampler(model, here, sampling, EOS)
    sampler.horizon, sampler.runner.flies = horizon, flies
    return here.data_rank, sampler.generate(requests[here.data_rank :: here.data_size])


def sampled_alone() -> tuple[list[Any], float]:
    """Responses with room for everything, and how far their log-probabilities are from the training forward's."""
    from megatron_ring.model.logprobs import token_statistics
    from megatron_ring.sampler.sampler import Sampler

    model, here = make(ParallelConfig())
    completions = Sampler(model, here, SamplingConfig(), EOS).generate(groups([3, 1, 2, 2, 1]))
    asked = [request.prompt_tokens for request in groups([3, 1, 2, 2, 1])]
    difference = 0.0
    logits = full_forward(model, [[*p, *c.tokens] for p, c in zip(asked, completions, strict=True)])
    for prompt, completion, rows in zip(asked, completions, logits, strict=True):
        wanted = token_statistics(rows[len(prompt) - 1 : -1], torch.tensor(completion.tokens)).logprobs
        difference = max(difference, (torch.tensor(completion.logprobs) - wanted).abs().max().item())
    return completions, difference


@pytest.fixture(scope="module")
def alone(run_on) -> list[Any]:
    ((completions, difference),) = run_on(1, sampled_alone)
    assert difference < 1e-5
    return completions


MORE_LAYOUTS = {"ep2_of_4": (4, ParallelConfig(expert=2))}  # two replicas of each expert


@pytest.mark.distributed
@pytest.mark.parametrize("layout", [*LAYOUTS, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE_LAYOUTS)])
def test_every_layout_samples_the_same(run_on, alone: list[Any], layout: str) -> None:
    """In little memory, with chunks and preemption, as one process with room for all."""
    same_as_alone(run_on, alone, layout, horizon=1)


@pytest.mark.distributed
@pytest.mark.parametrize("layout", ["dp2", "tp2", "ep2", pytest.param("tp2_ep2", marks=pytest.mark.slow),
                                    pytest.param("ep2_of_4", marks=pytest.mark.slow)])  # fmt: skip
@pytest.mark.parametrize("flies", [False, True])
def test_several_tokens_in_a_row_are_the_same(run_on, alone: list[Any], layout: str, flies: bool) -> None:
    """What CUDA graphs hold, without the graphs: ranks that share experts see each other's tokens."""
    same_as_alone(run_on, alone, layout, horizon=3 if flies else 5, flies=flies)


def same_as_alone(run_on, alone: list[Any], layout: str, horizon: int, flies: bool = False) -> None:
    processes, parallel = {**LAYOUTS, **MORE_LAYOUTS}[layout]
    data_size = parallel.data(processes)
    for data_rank, found in run_on(processes, sampled_under, parallel, TIGHT, horizon, flies):
        wanted = alone[data_rank::data_size]
        assert [(c.tokens, c.finish_reason) for c in found] == [(c.tokens, c.finish_reason) for c in wanted]
        for a, b in zip(found, wanted, strict=True):
            for name in ("logprobs", "processed_logprobs", "entropies"):
                assert torch.allclose(torch.tensor(getattr(a, name)), torch.tensor(getattr(b, name)), atol=1e-5)


def uneven_work(horizon: int, flies: bool) -> int:
    """EP=2 with nine prompts on rank 0's side and none on the other: both must finish."""
    from megatron_ring.sampler.requests import GenerationRequest
    from megatron_ring.sampler.sampler import Sampler

    model, here = make(ParallelConfig(expert=2))
    sampler = Sampler(model, here, SamplingConfig(max_batch=4, max_new_tokens=8), EOS)
    sampler.horizon, sampler.runner.flies = horizon, flies
    requests = [GenerationRequest(p, i, 8) for i, p in enumerate(prompts(9))] if here.data_rank == 0 else []
    return len(sampler.generate(requests))


@pytest.mark.distributed
@pytest.mark.parametrize(("horizon", "flies"), [(1, False), (3, False), (3, True)])
def test_a_replica_without_work_takes_part(run_on, horizon: int, flies: bool) -> None:
    assert run_on(2, uneven_work, horizon, flies) == [9, 0]


def with_budgets(parallel: ParallelConfig, budget: int, flies: bool) -> tuple[int, list[Any], list[int]]:
    """Calls of `budget` tokens until all is done, each in a sampler of its own."""
    from megatron_ring.parallel import collectives
    from megatron_ring.sampler.sampler import Sampler

    model, here = make(parallel)
    state = {i: request for i, request in enumerate(groups([3, 1, 2, 2, 1])) if i % here.data_size == here.data_rank}
    answers, sampled, version = {}, [], 0
    while any(collectives.gather_over_world(len(state))):
        before = sum(len(request.begun.tokens) for request in state.values())
        sampler = Sampler(model, here, TIGHT, EOS)
        sampler.horizon, sampler.runner.flies = 1 + flies, flies
        completions = sampler.generate(list(state.values()), version=version, token_budget=budget)
        made = sum(len(c.tokens) for c in completions) - before
        sampled.append(sum(collectives.gather_over_world(made)) * here.data_size // here.world_size)
        for (i, request), completion in zip(list(state.items()), completions, strict=True):
            if completion.finish_reason is None:
                state[i] = request.continued(completion)
            else:
                answers[i] = completion
                del state[i]
        version += 1
    return here.data_rank, [answers[i] for i in sorted(answers)], sampled


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("layout", "flies"),
    [
        (layout, flies)
        for layout in ("one", "dp2", "tp2", "ep2", "pp2")
        for flies in (False, True)
        if layout != "pp2" or not flies
    ],
)
def test_responses_go_on_where_a_token_budget_stopped_them(run_on, alone: list[Any], layout: str, flies: bool) -> None:
    processes, parallel = LAYOUTS[layout]
    data_size = parallel.data(processes)
    for data_rank, found, sampled in run_on(processes, with_budgets, parallel, 25, flies):
        assert len(sampled) > 2
        # The budget is of all replicas together; the step that reaches it may pass it by less than its batch.
        assert all(25 <= count < 25 + 4 * data_size for count in sampled[:-1])
        for a, b in zip(found, alone[data_rank::data_size], strict=True):
            assert a.tokens == b.tokens and a.finish_reason == b.finish_reason
            assert torch.allclose(torch.tensor(a.logprobs), torch.tensor(b.logprobs), atol=1e-5)
            assert sum(count for _, count in a.versions) == len(a.tokens) == len(a.entropies)
        assert any(len(c.versions) > 1 for c in found)
