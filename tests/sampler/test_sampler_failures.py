"""What generation refuses, what it does when a rank fails, and what it leaves alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_ring.config.parallel import ParallelConfig
from megatron_ring.config.sampling import SamplingConfig
from megatron_ring.errors import UserError
from tests.conftest import ROOT
from tests.layouts import LAYOUTS
from tests.sampler.generating import EOS, TIGHT, generate, groups, make


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
    if how.startswith("weights") and here.last_stage:
        with torch.no_grad():
            model.output_layer.weight.fill_(float("nan"))
    try:
        sampler = Sampler(model, here, TIGHT, EOS)
        if how == "weights, in the air" and parallel.pipeline == 1:
            sampler.horizon, sampler.runner.flies = 2, True
        sampler.generate(requests, **called)
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
        ("weights, in the air", "NotFiniteError: rank 0: response 0, token 0: the model's logits are not finite"),
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
from tests.sampler import generating as here
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
