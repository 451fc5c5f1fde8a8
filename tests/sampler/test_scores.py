"""Scores of prompts and of what is sampled, against full forward passes of the training path, under every layout."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from megatron_ring.config.parallel import ParallelConfig
from megatron_ring.config.sampling import RequestSampling, SamplingConfig
from megatron_ring.errors import RequestError
from tests.layouts import LAYOUTS
from tests.sampler.test_sampler import EOS, full_forward, make, prompts

GREEDY, WARM = RequestSampling(temperature=0.0), RequestSampling(temperature=0.7, top_p=0.8)
SMALL = SamplingConfig(page_size=4, prefill_tokens=7, max_batch=3, kv_tokens=28)
LARGE = SamplingConfig(kv_tokens=4096)
Scored = tuple[dict[int, Any], list[Any], list[int]]  # of prompt positions, of sampled tokens, the tokens


def requests() -> list[Any]:
    """Two of each prompt, one scored and one not; two of one prompt that are both scored."""
    from megatron_ring.sampler.requests import GenerationRequest

    found = []
    for place, prompt in enumerate([*prompts(4), [9]]):
        asked = GenerationRequest(prompt, place, 6, sampling=(GREEDY, WARM)[place % 2], columns=frozenset({"logprobs"}))
        found += [replace(asked, top_logprobs=place, prompt_scores=True), asked]
    return [*found, replace(found[0], top_logprobs=1)]


def score(parallel: ParallelConfig, limits: SamplingConfig, horizon: int = 1) -> tuple[int, list[Scored]]:
    """Every replica scores all."""
    from megatron_ring.sampler.sampler import Sampler

    model, here = make(parallel)
    sampler = Sampler(model, here, limits, EOS)
    sampler.horizon, sampler.runner.flies = horizon, horizon > 1
    engine = sampler.engine()
    asked = requests()
    found: list[Scored] = [({}, [], []) for _ in asked]
    if engine.leads:
        for request in asked:
            engine.add(request)
        engine.close()
    while not (report := engine.step()).closed:
        for number, positions in report.prompt_scores.items():
            found[number][0].update(positions)
        for number, sampled in report.tokens.items():
            found[number][1].extend(sampled.scores)
            found[number][2].extend(sampled.tokens)
    return engine.scheduler.preemptions, found


def by_training(sampled: list[Scored]) -> list[Scored]:
    """The same out of whole sequences, their tokens as sampled by `score`."""
    model, _ = make(ParallelConfig())
    expected = []
    for request, (_, _, tokens) in zip(requests(), sampled, strict=True):
        whole = [*request.prompt_tokens, *tokens]
        temperature = request.sampling.temperature or 1.0
        logprobs = torch.log_softmax(full_forward(model, [whole])[0].double() / temperature, dim=-1)
        scores = []
        for position in range(1, len(whole)):
            row = logprobs[position - 1]
            top = row.topk(request.top_logprobs or 0)
            pairs = tuple(zip(top.indices.tolist(), top.values.tolist(), strict=True))
            scores.append((row[whole[position]].item(), pairs))
        first = len(request.prompt_tokens)
        of_prompt = dict(zip(range(1, first), scores, strict=False)) if request.prompt_scores else {}
        of_response = scores[first - 1 :] if request.top_logprobs is not None else []
        expected.append((of_prompt, of_response, tokens))
    return expected


@pytest.fixture(scope="module")
def expected(run_on: Any) -> list[Scored]:
    ((_, sampled),) = run_on(1, score, ParallelConfig(), LARGE)
    (found,) = run_on(1, by_training, sampled)
    return found


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("layout", LAYOUTS)
def test_scores_are_those_of_training(layout: str, run_on: Any, expected: list[Scored]) -> None:
    processes, parallel = LAYOUTS[layout]
    for limits, horizon in ((SMALL, 1), (LARGE, 1 if parallel.pipeline > 1 else 3)):
        for preemptions, found in run_on(processes, score, parallel, limits, horizon):
            assert preemptions > 0 or limits is LARGE
            for (prompt, response, tokens), wanted in zip(found, expected, strict=True):
                assert tokens == wanted[2] and prompt.keys() == wanted[0].keys() and len(response) == len(wanted[1])
                pairs = [(prompt[place], wanted[0][place]) for place in prompt] + list(zip(response, wanted[1], strict=True))
                for ours, (logprob, top) in pairs:
                    assert ours.logprob == pytest.approx(logprob, abs=1e-5)
                    assert [token for token, _ in ours.top] == [token for token, _ in top]
                    assert [value for _, value in ours.top] == pytest.approx([value for _, value in top], abs=1e-5)


@pytest.mark.distributed
def test_the_likeliest_token_has_one_number(expected: list[Scored], run_on: Any) -> None:
    ((_, found),) = run_on(1, score, ParallelConfig(), LARGE)
    greedy = found[4]  # of the third prompt, at temperature 0
    assert len(greedy[1]) > 0 and all(one.logprob == one.top[0][1] for one in greedy[1])


def refused() -> list[str]:
    from megatron_ring.sampler.sampler import Sampler

    model, here = make(ParallelConfig())
    engine = Sampler(model, here, LARGE, EOS).engine()
    found = []
    for change in ({"top_logprobs": 21}, {"prompt_scores": True}, {"prompt_tokens": [1, -1]}, {"prompt_tokens": [10**30]}):
        with pytest.raises(RequestError) as error:
            engine.add(replace(requests()[1], **change))
        found.append(str(error.value))
    return found


@pytest.mark.distributed
def test_what_cannot_be_scored(run_on: Any) -> None:
    (found,) = run_on(1, refused)
    assert ["21 likeliest" in found[0], "top_logprobs" in found[1], "-1" in found[2], "vocabulary" in found[3]] == [True] * 4
