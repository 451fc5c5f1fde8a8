"""Generation against full forward passes of the training path, alone and under every layout."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ring.config.parallel import ParallelConfig
from megatron_ring.config.presets import RING_TINY
from megatron_ring.config.sampling import SamplingConfig
from megatron_ring.errors import UserError
from tests.conftest import ROOT
from tests.layouts import LAYOUTS

EOS = 3


def prompts(count: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(4, 300, (2 + 3 * i % 17,), generator=generator).tolist() for i in range(count)]


def make(parallel: ParallelConfig, sharpness: float = 4.0) -> tuple[Any, Any]:
    """A tiny random model whose head is scaled up, so that its distributions are far from uniform."""
    from megatron_ring.checkpoint.weights import initialize_weights
    from megatron_ring.model.ring_model import build_model
    from megatron_ring.parallel import context

    here = context.initialize(parallel, RING_TINY, seed=0)
    model = build_model(RING_TINY, here)
    initialize_weights(model, seed=11)
    if here.last_stage:
        with torch.no_grad():
            model.output_layer.weight.mul_(sharpness)
    return model, here


def full_forward(model: Any, sequences: list[list[int]]) -> list[torch.Tensor]:
    """Logits of each sequence by the packed training forward, one process."""
    from megatron_ring.model.layout import PackedLayout
    from megatron_ring.model.ring_model import forward_all_stages

    lengths = [len(s) for s in sequences]
    positions = torch.cat([torch.arange(length) for length in lengths])
    tokens = torch.tensor([token for s in sequences for token in s])
    logits = forward_all_stages(model, tokens, PackedLayout(positions, lengths))
    assert logits is not None
    return list(logits.split(lengths))


def generate(model: Any, here: Any, sampling: SamplingConfig, count: int, new: int) -> list[Any]:
    from megatron_ring.sampler.requests import GenerationRequest, request_seed
    from megatron_ring.sampler.sampler import Sampler

    requests = [GenerationRequest(p, request_seed(9, i), new) for i, p in enumerate(prompts(count))]
    mine = requests[here.data_rank :: here.data_size]
    return Sampler(model, here, sampling, EOS).generate(mine)


def groups(samples: list[int], new: int = 16) -> list[Any]:
    """Requests of as many prompts, each with its number of samples."""
    from megatron_ring.sampler.requests import GenerationRequest, request_seed

    asked = zip(prompts(len(samples)), samples, strict=True)
    return [GenerationRequest(p, request_seed(9, i, k), new) for i, (p, many) in enumerate(asked) for k in range(many)]


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

    @settings(max_examples=40, deadline=None, database=None, derandomize=True)
    @given(
        batch=st.integers(1, 12), page=st.sampled_from([1, 3, 8, 64]), chunk=st.sampled_from([1, 5, 8192]),
        more=st.integers(0, 80), order=st.permutations(range(len(requests))), kept=st.integers(1, len(requests)),
        horizon=st.sampled_from([1, 3, 8]),
    )  # fmt: skip
    def check(batch: int, page: int, chunk: int, more: int, order: list[int], kept: int, horizon: int) -> None:
        tokens = -(-longest // page) * page + more
        sampling = SamplingConfig(top_p=0.9, max_batch=batch, page_size=page, prefill_tokens=chunk, kv_tokens=tokens)
        sampler = Sampler(model, here, sampling, EOS)
        sampler.horizon = horizon
        engines = []
        open_engine = sampler._open
        sampler._open = lambda *about: engines.append(open_engine(*about)) or engines[0]
        found = sampler.generate([requests[i] for i in order[:kept]])
        assert [c.tokens for c in found] == [wanted[i] for i in order[:kept]]
        counts["runs"] += 1
        counts["preemptions"] += engines[0].scheduler.preemptions

    check()
    return counts


@pytest.mark.distributed
def test_a_response_depends_on_its_seed_alone(run_on) -> None:
    """Neither on the batch, nor on pages, chunks, order and preemption, nor on how many tokens are decoded in a row."""
    (counts,) = run_on(1, settings_do_not_matter)
    assert counts["runs"] >= 30 and counts["preemptions"] > 20


TIGHT = SamplingConfig(max_batch=4, page_size=4, prefill_tokens=7, kv_tokens=64)


def sampled_under(parallel: ParallelConfig, sampling: SamplingConfig, horizon: int = 1) -> tuple[int, list[Any]]:
    from megatron_ring.sampler.sampler import Sampler

    model, here = make(parallel)
    requests = groups([3, 1, 2, 2, 1])
    sampler = Sampler(model, here, sampling, EOS)
    sampler.horizon = horizon
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
def test_several_tokens_in_a_row_are_the_same(run_on, alone: list[Any], layout: str) -> None:
    """What CUDA graphs hold, without the graphs: ranks that share experts see each other's tokens."""
    same_as_alone(run_on, alone, layout, horizon=5)


def same_as_alone(run_on, alone: list[Any], layout: str, horizon: int) -> None:
    processes, parallel = {**LAYOUTS, **MORE_LAYOUTS}[layout]
    data_size = parallel.data(processes)
    for data_rank, found in run_on(processes, sampled_under, parallel, TIGHT, horizon):
        wanted = alone[data_rank::data_size]
        assert [(c.tokens, c.finish_reason) for c in found] == [(c.tokens, c.finish_reason) for c in wanted]
        for a, b in zip(found, wanted, strict=True):
            for name in ("logprobs", "processed_logprobs", "entropies"):
                assert torch.allclose(torch.tensor(getattr(a, name)), torch.tensor(getattr(b, name)), atol=1e-5)


def uneven_work(horizon: int) -> int:
    """EP=2 with nine prompts on rank 0's side and none on the other: both must finish."""
    from megatron_ring.sampler.requests import GenerationRequest
    from megatron_ring.sampler.sampler import Sampler

    model, here = make(ParallelConfig(expert=2))
    sampler = Sampler(model, here, SamplingConfig(max_batch=4, max_new_tokens=8), EOS)
    sampler.horizon = horizon
    requests = [GenerationRequest(p, i, 8) for i, p in enumerate(prompts(9))] if here.data_rank == 0 else []
    return len(sampler.generate(requests))


@pytest.mark.distributed
@pytest.mark.parametrize("horizon", [1, 3])
def test_a_replica_without_work_takes_part(run_on, horizon: int) -> None:
    assert run_on(2, uneven_work, horizon) == [9, 0]


def moving_memory() -> tuple[int, int]:
    """Tensors in the buffer that megatron-core's layers share, after sampling and after a forward pass with gradients."""
    from megatron.core.parallel_state import get_global_memory_buffer

    from megatron_ring.model.layout import PackedLayout
    from megatron_ring.model.ring_model import forward_packed

    model, here = make(ParallelConfig(tensor=2))
    get_global_memory_buffer().buffer.clear()
    generate(model, here, SamplingConfig(max_batch=4), count=3, new=4)
    sampling = len(get_global_memory_buffer().buffer)
    forward_packed(model, torch.arange(8), PackedLayout(torch.arange(8), [8]))
    return sampling, len(get_global_memory_buffer().buffer)


@pytest.mark.distributed
def test_sampling_leaves_the_shared_buffer_alone(run_on) -> None:
    """It is allocated anew when it must grow: a CUDA graph that names it would read and write what is no longer its own."""
    for sampling, training in run_on(2, moving_memory):
        assert sampling == 0
        assert training > 0


def refused_by_a_capture() -> None:
    """A forward pass while the random state cannot be set, as while a CUDA graph is captured."""
    from megatron.core.tensor_parallel import random

    from megatron_ring.model.layout import PackedLayout
    from megatron_ring.model.ring_model import forward_all_stages
    from megatron_ring.parallel.graphs import steady_random_state

    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("the random state during a capture")

    model, _ = make(ParallelConfig(tensor=2))
    work = torch.arange(8), PackedLayout(torch.arange(8), [8])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(random, "_set_cuda_rng_state", refuse)
        with pytest.raises(RuntimeError, match="during a capture"):
            forward_all_stages(model, *work)
        with steady_random_state():
            forward_all_stages(model, *work)
    forward_all_stages(model, *work)


@pytest.mark.distributed
def test_a_capture_does_not_touch_the_random_state(run_on) -> None:
    run_on(2, refused_by_a_capture)


def with_budgets(parallel: ParallelConfig, budget: int) -> tuple[int, list[Any], list[int]]:
    """Calls of `budget` tokens until all is done, each in a sampler of its own."""
    from megatron_ring.parallel import collectives
    from megatron_ring.sampler.sampler import Sampler

    model, here = make(parallel)
    state = {i: request for i, request in enumerate(groups([3, 1, 2, 2, 1])) if i % here.data_size == here.data_rank}
    answers, sampled, version = {}, [], 0
    while any(collectives.gather_over_world(len(state))):
        before = sum(len(request.begun.tokens) for request in state.values())
        completions = Sampler(model, here, TIGHT, EOS).generate(list(state.values()), version=version, token_budget=budget)
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
@pytest.mark.parametrize("layout", ["one", "dp2", "tp2", "ep2", "pp2"])
def test_responses_go_on_where_a_token_budget_stopped_them(run_on, alone: list[Any], layout: str) -> None:
    processes, parallel = LAYOUTS[layout]
    data_size = parallel.data(processes)
    for data_rank, found, sampled in run_on(processes, with_budgets, parallel, 25):
        assert len(sampled) > 2
        # The budget is of all replicas together; the step that reaches it may pass it by less than its batch.
        assert all(25 <= count < 25 + 4 * data_size for count in sampled[:-1])
        for a, b in zip(found, alone[data_rank::data_size], strict=True):
            assert a.tokens == b.tokens and a.finish_reason == b.finish_reason
            assert torch.allclose(torch.tensor(a.logprobs), torch.tensor(b.logprobs), atol=1e-5)
            assert sum(count for _, count in a.versions) == len(a.tokens) == len(a.entropies)
        assert any(len(c.versions) > 1 for c in found)


def failing(parallel: ParallelConfig, how: str) -> str:
    """What every rank says when rank 1 cannot go on."""
    from megatron_ring.sampler.requests import GenerationRequest
    from megatron_ring.sampler.sampler import Sampler

    model, here = make(parallel)
    requests, called = groups([2, 2], new=12), {}
    if how == "callback" and here.rank == 1:
        called["on_token"] = lambda index, token: {}[index]
    if how == "request" and here.rank == here.world_size - 1:
        requests = [GenerationRequest([5] * 1020, 0, 12)]
    if how == "memory":
        requests = [GenerationRequest([5] * 60, 0, 12)]
    if how == "weights" and here.last_stage:
        with torch.no_grad():
            model.output_layer.weight.fill_(float("nan"))
    try:
        Sampler(model, here, TIGHT, EOS).generate(requests, **called)
    except (UserError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


@pytest.mark.distributed
@pytest.mark.parametrize("layout", ["dp2", "tp2", "ep2", "pp2"])
@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("callback", "RuntimeError: rank 1: KeyError: 0"),
        ("request", "RequestError: rank 1: a prompt of 1020 tokens and 12 new ones exceed the model's 1024 positions"),
        ("memory", "RequestError: rank 0: --sampling.kv-tokens 64 holds 16 pages of 4 tokens"),
        ("weights", "NotFiniteError: rank 0: response 0, token 0: the model's logits are not finite"),
    ],
)
def test_a_failing_rank_fails_all_and_is_named(run_on, layout: str, how: str, said: str) -> None:
    found = run_on(2, failing, LAYOUTS[layout][1], how)
    assert all(line.startswith(said) for line in found), found


def refused() -> list[str]:
    from megatron_ring.sampler.completion import Completion
    from megatron_ring.sampler.requests import GenerationRequest
    from megatron_ring.sampler.sampler import Sampler

    model, here = make(ParallelConfig())
    begun = GenerationRequest([4], 0, 2).continued(
        Completion(tokens=[5, 6], logprobs=[0.0] * 2, processed_logprobs=[0.0] * 2, entropies=[0.0] * 2, versions=[[0, 2]])
    )
    found = []
    for request in (GenerationRequest([], 0, 4), begun, GenerationRequest([4] * 50, 0, 15)):
        with pytest.raises(UserError) as error:
            Sampler(model, here, TIGHT, EOS).generate([request])
        found.append(str(error.value))
    return found


@pytest.mark.distributed
def test_impossible_requests_are_refused(run_on) -> None:
    ((empty, long, large),) = run_on(1, refused)
    assert "a prompt without tokens" in empty and "2 tokens is not to have more than 2" in long
    assert "--sampling.kv-tokens 64 holds 16 pages of 4 tokens and the longest request needs 17: raise it to 68" in large


def after_the_weights_moved() -> list[bool]:
    from megatron_ring.sampler.sampler import Sampler

    model, here = make(ParallelConfig())
    requests = groups([2, 2])
    sampler = Sampler(model, here, SamplingConfig(), EOS)
    first = sampler.generate(requests)
    held, memory = sampler.runner.cache is not None, sampler.runner.cache
    again = sampler.generate(requests)
    reused = sampler.runner.cache is memory
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.3)
    sampler.weights_changed()
    freed = sampler.runner.cache is None
    return [
        held, reused, freed, first == again, first != sampler.generate(requests),
        sampler.generate(requests) == Sampler(model, here, SamplingConfig(), EOS).generate(requests),
    ]  # fmt: skip


@pytest.mark.distributed
def test_nothing_outlives_the_weights(run_on) -> None:
    assert run_on(1, after_the_weights_moved) == [[True] * 6]


IN_A_FORWARD_PASS = """
from megatron_ring.config.parallel import ParallelConfig
from megatron_ring.errors import run_main
from megatron_ring.parallel import prepare

prepare()
from tests.sampler import test_sampler as here
from megatron_ring.sampler.sampler import Sampler

def main():
    model, context = here.make(ParallelConfig(tensor=2))
    if context.rank == 1:
        def fail(*_, **__):
            raise __import__("torch").OutOfMemoryError("no memory")
        model.output_layer.logits = fail
    Sampler(model, context, here.TIGHT, here.EOS).generate(here.groups([1, 1]))

run_main(main)
"""


@pytest.mark.slow
@pytest.mark.distributed
def test_a_rank_that_fails_inside_a_forward_pass_ends_all(tmp_path: Path) -> None:
    (tmp_path / "fails.py").write_text(IN_A_FORWARD_PASS)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launcher, str(tmp_path / "fails.py")], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert said == [
        "error: rank 1: sampling ran out of memory: lower --sampling.kv-fraction, --sampling.prefill-tokens or "
        "--sampling.max-batch (rank 1)"
    ]
