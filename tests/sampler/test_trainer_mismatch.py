"""The measured mismatch against numbers got another way, the tool's command line, and --exact's wiring in Triton's
interpreter."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_ring.config.optimizer import RouterLossConfig
from megatron_ring.config.parallel import ParallelConfig
from megatron_ring.config.presets import RING_TINY
from megatron_ring.config.sampling import SamplingConfig
from megatron_ring.errors import UserError
from tests.conftest import ROOT
from tests.distributed import Workers
from tests.processes import run
from tests.sampler.generating import full_forward, groups, make

SMALL = replace(RING_TINY, vocab_size=300, first_dense_layers=1)


def measured() -> dict[str, Any]:
    """In bf16, where sampler and trainer differ by much, routers too."""
    from megatron_ring.sampler.sampler import Sampler
    from megatron_ring.sampler.trainer_mismatch import measure_mismatch

    model, here = make(ParallelConfig())
    model.bfloat16()
    requests = groups([4, 1, 3, 4], new=60)
    sampling = SamplingConfig(temperature=0.8, max_batch=5, prefill_tokens=6, page_size=4, kv_tokens=400)
    found = measure_mismatch(model, here, sampling, requests, train_tokens=150)

    done = Sampler(model, here, sampling, -1).generate(requests)
    sequences = [[*request.prompt_tokens, *completion.tokens] for request, completion in zip(requests, done, strict=True)]
    wanted, pairs = [], 0
    for request, sequence, completion in zip(requests, sequences, done, strict=True):
        (logits,) = full_forward(model, [sequence])
        rows = slice(len(request.prompt_tokens) - 1, len(sequence) - 1)
        log_p = torch.log_softmax(logits[rows].double() / 0.8, dim=-1)
        theirs = log_p.gather(1, torch.tensor(completion.tokens)[:, None])[:, 0]
        wanted.append(theirs - torch.tensor(completion.logprobs, dtype=torch.float64))
        pairs += len(theirs) * RING_TINY.num_layers
    return {
        "found": found.differences, "wanted": torch.cat(wanted), "routed": found.routed,
        "differing": found.routed_differently, "pairs": pairs,
        "entropy": found.mean_entropy, "entropies": torch.tensor([c.entropies for c in done]).mean().item(),
    }  # fmt: skip


def test_the_mismatch_is_that_of_a_full_forward(run_on) -> None:
    (out,) = run_on(1, measured)
    found, wanted = out["found"], out["wanted"]
    assert found.shape == wanted.shape == (12 * 60,)
    assert 1e-4 < wanted.abs().mean() < 0.1
    # Another packing is another order of sums, in bf16: alike, not equal.
    assert torch.corrcoef(torch.stack((found, wanted)))[0, 1] > 0.5
    assert abs(found.abs().mean() / wanted.abs().mean() - 1) < 0.3
    assert out["routed"] == out["pairs"] == 12 * 60 * RING_TINY.num_layers
    assert 0 < out["differing"] < 0.1 * out["routed"]
    assert out["entropy"] == pytest.approx(out["entropies"])


def refused() -> str:
    from megatron_ring.sampler.trainer_mismatch import measure_mismatch

    model, here = make(ParallelConfig())
    with pytest.raises(UserError) as caught:
        measure_mismatch(model, here, SamplingConfig(), groups([1]))
    return str(caught.value)


def test_several_processes_are_refused(run_on) -> None:
    assert "one" in run_on(2, refused)[0]


def check_sampler(*flags: str) -> subprocess.CompletedProcess[str]:
    return run([sys.executable, ROOT / "tools" / "check_sampler.py", *flags], timeout=120)


@pytest.mark.slow
def test_the_tool(tmp_path: Path) -> None:
    small = ["--prompts", "3", "--samples", "2", "--new-tokens", "10"]
    done = check_sampler("--preset", "ring-tiny", "--sharpness", "4", *small, "--figure", str(tmp_path / "a.png"))
    out = json.loads(done.stdout)
    assert done.returncode == 0, done.stderr
    assert out["tokens"] == sum(out["histogram"].values()) == 3 * (10 + 8) and out["sequences"] == 6
    assert out["logprob_abs_max"] < 1e-5 and out["router_pairs"] == 54 * RING_TINY.num_layers
    assert (tmp_path / "a.png").stat().st_size > 5000


def saved(folder: str) -> None:
    from megatron_ring.checkpoint.saving import save_checkpoint

    model, here = make(ParallelConfig())
    for step in (3, 5):
        save_checkpoint(Path(folder), step, model, None, here, {})


def test_the_tool_on_the_latest_checkpoint_of_a_run(run_on, tmp_path: Path) -> None:
    run_on(1, saved, str(tmp_path / "checkpoints"))
    done = check_sampler("--checkpoint", str(tmp_path / "checkpoints" / "latest"), "--prompts", "2", "--new-tokens", "4")
    assert done.returncode == 0, done.stderr
    out = json.loads(done.stdout)
    assert out["layers"] == RING_TINY.num_layers and out["model"].endswith("checkpoints/step_5")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--preset", "ring-tiny", "--exact"], "--exact: its kernels want a CUDA device"),
        ([], "give --checkpoint DIR, or --preset NAME"),
        (["--preset", "ring-tiny", "--samples", "0"], "--samples is 0, below 1"),
        (["--checkpoint", "nowhere"], "nowhere: no such checkpoint"),
    ],
)
def test_what_the_tool_refuses(flags: list[str], said: str) -> None:
    if torch.cuda.is_available() and "--exact" in flags:
        pytest.skip("there is a CUDA device")
    done = check_sampler(*flags)
    assert done.returncode == 2 and said in done.stderr and not done.stdout
    assert len(done.stderr.strip().splitlines()) == 1


def ready() -> None:
    import megatron_ring.model.ring_model  # noqa: F401
    from megatron_ring.model.kernels import exact_attention_triton, exact_mm_triton  # noqa: F401


@pytest.fixture(scope="module")
def interpreting() -> Iterator[Workers]:
    """Two processes where Triton interprets its kernels on the CPU."""
    pytest.importorskip("triton", reason="Triton is not installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        workers = Workers(2)
        workers(ready)  # what it takes to import counts in no test's time
        yield workers
        workers.close()


def step_of(parallel: ParallelConfig, exact: bool, recompute: str) -> tuple[float, torch.Tensor]:
    """Loss and all gradients of this process's sequences."""
    from megatron_ring.checkpoint.weights import initialize_weights
    from megatron_ring.model.layout import PackedLayout
    from megatron_ring.model.ring_model import build_model, forward_packed
    from megatron_ring.parallel import context

    here = context.initialize(parallel, SMALL, seed=0)
    model = build_model(SMALL, here, RouterLossConfig(1e-2, 1e-3), recompute=recompute, exact=exact)
    initialize_weights(model, seed=11)
    lengths = [9, 1, 14]
    tokens = torch.randint(300, (24,), generator=torch.Generator().manual_seed(here.data_rank))
    positions = torch.cat([torch.arange(length) for length in lengths])
    model.router_losses.start_step(1.0)
    hidden = forward_packed(model, tokens, PackedLayout(positions, lengths))
    loss = model.output_layer.loss(hidden, torch.arange(24), tokens.roll(-1), 1.0, lambda p, h, _: 0.1 * h.sum() - p.sum())
    loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
    return loss.item(), gradient


@pytest.mark.parametrize(
    ("layout", "recompute"), [(ParallelConfig(), "none"), (ParallelConfig(), "full"), (ParallelConfig(expert=2), "experts")]
)
def test_exact_is_the_same_model(interpreting: Workers, layout: ParallelConfig, recompute: str) -> None:
    """Loss and gradients in fp32, with experts on one process and on two."""
    both = (interpreting(step_of, layout, exact, recompute) for exact in (True, False))
    for (loss, gradient), (usual_loss, usual) in zip(*both, strict=True):
        assert loss == pytest.approx(usual_loss, rel=1e-6)
        assert ((gradient - usual).norm() / usual.norm()).item() < 1e-5


def exact_sampling(horizon: int) -> float:
    from megatron_ring.checkpoint.weights import initialize_weights
    from megatron_ring.model.ring_model import build_model
    from megatron_ring.parallel import context
    from megatron_ring.sampler.requests import GenerationRequest
    from megatron_ring.sampler.sampler import Sampler

    here = context.initialize(ParallelConfig(), SMALL, seed=0)
    model = build_model(SMALL, here, exact=True)
    initialize_weights(model, seed=11)
    requests = [GenerationRequest([5, 9, 7, 8, 4][:n], n, 3) for n in (1, 5)]
    sampler = Sampler(model, here, SamplingConfig(page_size=2, prefill_tokens=2), -1)
    sampler.horizon, sampler.runner.flies = horizon, horizon > 1
    done = sampler.generate(requests)
    worst = 0.0
    for request, completion in zip(requests, done, strict=True):
        (logits,) = full_forward(model, [[*request.prompt_tokens, *completion.tokens]])
        log_p = torch.log_softmax(logits.double(), -1)[len(request.prompt_tokens) - 1 : -1]
        theirs = log_p.gather(1, torch.tensor(completion.tokens)[:, None])[:, 0]
        worst = max(worst, (theirs - torch.tensor(completion.logprobs)).abs().max().item())
    return worst


@pytest.mark.parametrize("horizon", [1, 3])
def test_the_sampler_runs_exactly(interpreting: Workers, horizon: int) -> None:
    """What is left is of the CPU's row kernels: on a GPU it is 0 (tests/gpu)."""
    assert max(interpreting(exact_sampling, horizon)) < 1e-5
