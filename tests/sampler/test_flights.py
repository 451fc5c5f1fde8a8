"""Steps that are launched before the last one has landed: that they are, when they are not, and what they compute in vain.
That answers do not depend on it is said where answers are tested."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from megatron_ring.config.parallel import ParallelConfig
from megatron_ring.config.sampling import SamplingConfig
from tests.sampler.generating import groups, make

EOS = 96  # often sampled
Log = list[tuple[str, int]]


def logged(sampler: Any) -> Log:
    """What the sampler's runner does from now on: ("launch" or "land", rows that decode)."""
    log: Log = []
    launch = sampler.runner.launch

    def logging(step: Any, *about: Any) -> Any:
        log.append(("launch", len(step.decoding)))
        land = launch(step, *about)

        def landing() -> Any:
            log.append(("land", len(step.decoding)))
            return land()

        return landing

    sampler.runner.launch = logging
    return log


def sampled(flies: bool, horizon: int) -> tuple[list[Any], Log, int]:
    """Responses some of which end early, what was launched and landed, and rows that were computed and not idle."""
    from megatron_ring.sampler import decoding
    from megatron_ring.sampler.sampler import Sampler

    live = []

    class Layout(decoding.DecodeLayout):
        def __init__(self, *about: Any) -> None:
            super().__init__(*about)
            live.append(int((~self.idle).sum()))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "DecodeLayout", Layout)
        model, here = make(ParallelConfig())
        sampler = Sampler(model, here, SamplingConfig(top_p=0.9), EOS)
        sampler.horizon, sampler.runner.flies = horizon, flies
        log = logged(sampler)
        found = sampler.generate(groups([3, 1, 4, 2, 1], new=60))
    return found, log, sum(live)


@pytest.mark.distributed
def test_one_lands_while_the_next_is_in_the_air(run_on: Any) -> None:
    ((found, log, live),) = run_on(1, sampled, True, 3)
    ((wanted, one_by_one, as_many),) = run_on(1, sampled, False, 3)
    assert [what for what, _ in one_by_one] == ["launch", "land"] * (len(one_by_one) // 2)
    order = [what for what, _ in log]
    assert order == ["launch", *["launch", "land"] * (len(log) // 2)]  # the last one has no rows, and is forgotten
    assert [rows for what, rows in log if what == "launch"][:-1] == [rows for what, rows in log if what == "land"]
    assert log[-2] == ("launch", 0) and len(log) > 8
    for a, b in zip(found, wanted, strict=True):
        assert (a.tokens, a.finish_reason) == (b.tokens, b.finish_reason)
        assert torch.allclose(torch.tensor(a.logprobs), torch.tensor(b.logprobs), atol=1e-5)
    assert {one.finish_reason for one in found} == {"stop", "length"}
    # A row that has drawn the end token, or reached its limit, is idle at once, in the next flight too.
    assert live == as_many == sum(len(one.tokens) for one in found)


def waited_for(how: str) -> tuple[Log, int]:
    """What was launched and landed while something is asked for that must be waited for, and most that was overshot."""
    from megatron_ring.sampler.sampler import Sampler

    model, here = make(ParallelConfig())
    tight = SamplingConfig(top_p=0.9, page_size=4, kv_tokens=80, max_batch=4)
    sampler = Sampler(model, here, tight if how == "pages" else SamplingConfig(top_p=0.9, max_batch=4), EOS)
    sampler.horizon, sampler.runner.flies = 2, True
    log, asked = logged(sampler), groups([3, 1], new=60)
    if how == "tokens":
        sampler.generate(asked, on_token=lambda *_: None)
    found = sampler.generate(asked, token_budget=60 if how == "budget" else None) if how != "tokens" else []
    return log, sum(len(one.tokens) for one in found)


def most_in_the_air(log: Log) -> list[int]:
    """After each launch, those that have not landed."""
    air, found = 0, []
    for what, _ in log:
        air += 1 if what == "launch" else -1
        if what == "launch":
            found.append(air)
    return found


@pytest.mark.distributed
def test_what_must_be_waited_for_lands_first(run_on: Any) -> None:
    """Where each token is told at once, where pages run out, and near the end of a token budget."""
    ((log, _),) = run_on(1, waited_for, "tokens")
    assert set(most_in_the_air(log)) == {1}
    ((log, _),) = run_on(1, waited_for, "pages")
    assert set(most_in_the_air(log)[1:]) == {1, 2}
    ((log, tokens),) = run_on(1, waited_for, "budget")
    air = most_in_the_air(log)
    assert 2 in air and air[-1] == 1 and 60 <= tokens < 60 + 4


def turns_of_steps() -> tuple[Log, list[int]]:
    """Rows and turns of each step that decodes: of two requests that come together, one that comes some steps later and
    three more after that, where there are eight rows; and the lengths of answers."""
    from megatron_ring.sampler.requests import GenerationRequest
    from megatron_ring.sampler.sampler import Sampler

    model, here = make(ParallelConfig())
    sampler = Sampler(model, here, SamplingConfig(max_batch=8, kv_tokens=4096), -1)
    sampler.horizon, sampler.runner.flies = 16, True
    engine = sampler.engine()
    found: Log = []
    launch = sampler.runner.launch

    def logging(step: Any, shape: Any, *about: Any) -> Any:
        found.append((len(step.decoding), shape.turns))
        return launch(step, shape, *about)

    sampler.runner.launch = logging
    come = {0: 2, 5: 1, 7: 3}
    lengths, number, steps = [], 0, 0
    while True:
        for _ in range(come.get(steps, 0)):
            engine.add(GenerationRequest([7, 8, 9 + number], number, 50))
            number += 1
        if steps == max(come):
            engine.close()
        report = engine.step()
        lengths += [len(one.tokens) for one in report.finished.values()]
        steps += 1
        if report.closed:
            return [(rows, turns) for rows, turns in found if rows], lengths


@pytest.mark.distributed
def test_few_rows_decode_short_turns_while_requests_come(run_on: Any) -> None:
    """Twice as many tokens with each step without news; where more than half of the rows run, as many as may fly."""
    ((found, lengths),) = run_on(1, turns_of_steps)
    assert lengths == [50] * 6
    few, many = [turns for rows, turns in found if rows < 4], [turns for rows, turns in found if rows > 4]
    assert few[:6] == [2, 4, 8, 8, 1, 2]
    assert many[0] == 8
    assert found[-1] == (3, 2)  # no more turns than tokens are left
