"""Sampling with expert weights in FP8: what it samples is what a model with the widened weights samples, under every layout,
and the trainer's own passes keep the policy's weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from megatron_ring.config.parallel import ParallelConfig
from megatron_ring.config.sampling import SamplingConfig
from tests.layouts import LAYOUTS
from tests.sampler.generating import EOS, full_forward, groups, make, prompts

NARROW = SamplingConfig(weights="fp8", max_batch=4, page_size=4, prefill_tokens=7, kv_tokens=128)
USUAL = SamplingConfig(max_batch=4, page_size=4, prefill_tokens=7, kv_tokens=128)


def experts_of(model: Any) -> list[torch.nn.Parameter]:
    return [parameter for name, parameter in model.named_parameters() if ".experts." in name]


def as_the_copy_has_them(model: Any) -> None:
    """Give the model the weights that its copy in FP8 stands for."""
    from megatron_ring.model.kernels.fp8 import Fp8Matrix

    with torch.no_grad():
        for weight in experts_of(model):
            weight.copy_(Fp8Matrix.of(weight).wide(weight.dtype))


def followed() -> dict[str, Any]:
    from megatron_ring.sampler.sampler import Sampler

    model, here = make(ParallelConfig())
    requests = groups([3, 1, 2])

    def tokens(sampler: Any) -> list[Any]:
        return [(c.tokens, c.logprobs) for c in sampler.generate(requests)]

    sampler = Sampler(model, here, NARROW, EOS, keeps_cache=True)
    before = full_forward(model, prompts(3))
    found = [tokens(sampler)]
    trained = full_forward(model, prompts(3))
    place = sampler.runner.narrow.of(model.decoder.layers[0].mlp)[0].values.data_ptr()
    usual = tokens(Sampler(model, here, USUAL, EOS))
    with torch.no_grad():  # a step of the optimizer
        for i, weight in enumerate(experts_of(model)):
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(i)) * 0.05)
    sampler.weights_changed()
    kept = sampler.runner.narrow is not None
    found.append(tokens(sampler))
    moved = sampler.runner.narrow.of(model.decoder.layers[0].mlp)[0].values.data_ptr() != place
    again = tokens(Sampler(model, here, NARROW, EOS))
    sampler.release()
    released = sampler.runner.narrow is None
    as_the_copy_has_them(model)
    wanted = tokens(Sampler(model, here, USUAL, EOS))
    return {
        "trainer's": all(torch.equal(a, b) for a, b in zip(before, trained, strict=True)), "differ": found[0] != usual,
        "changed": found[0] != found[1], "again": again == found[1], "kept": kept, "moved": moved, "released": released,
        "found": found[1], "wanted": wanted,
    }  # fmt: skip


@pytest.mark.distributed
def test_the_copy_follows_the_weights_and_the_trainer_keeps_its_own(run_on) -> None:
    (out,) = run_on(1, followed)
    assert out["trainer's"] and out["differ"] and out["changed"] and out["again"]
    assert out["kept"] and not out["moved"] and out["released"]
    assert [tokens for tokens, _ in out["found"]] == [tokens for tokens, _ in out["wanted"]]
    for (_, found), (_, wanted) in zip(out["found"], out["wanted"], strict=True):
        assert found == pytest.approx(wanted, abs=1e-5)


def between_steps() -> tuple[list[Any], list[Any]]:
    """What an engine goes on with after its weights have changed, and what an engine on such weights would."""
    from megatron_ring.sampler.sampler import Sampler

    model, here = make(ParallelConfig())
    engine = Sampler(model, here, NARROW, EOS).engine()
    for request in groups([2, 1]):
        engine.add(request)
    engine.close()
    for _ in range(4):
        engine.step()
    begun = {place: list(engine.partial(place).tokens) for place in range(3)}
    with torch.no_grad():
        for weight in experts_of(model):
            weight.mul_(-1.5)
    engine.weights_changed(1)
    done: dict[int, Any] = {}
    while not (report := engine.step()).closed:
        done |= report.finished
    as_the_copy_has_them(model)
    asked = groups([2, 1])
    whole = [[*request.prompt_tokens, *done[place].tokens] for place, request in enumerate(asked)]
    logits = full_forward(model, whole)
    found, wanted = [], []
    for place, request in enumerate(asked):
        first = len(begun[place])
        at = torch.arange(len(request.prompt_tokens) + first - 1, len(whole[place]) - 1)
        log_p = torch.log_softmax(logits[place][at].double(), -1)
        wanted += log_p.gather(1, torch.tensor(done[place].tokens[first:])[:, None])[:, 0].tolist()
        found += list(done[place].logprobs[first:])
    return found, wanted


@pytest.mark.distributed
def test_an_engine_goes_on_under_the_new_weights(run_on) -> None:
    ((found, wanted),) = run_on(1, between_steps)
    assert len(found) > 20 and found == pytest.approx(wanted, abs=1e-4)


def sampled_under(parallel: ParallelConfig) -> tuple[int, list[Any]]:
    from megatron_ring.sampler.sampler import Sampler

    model, here = make(parallel)
    sampler = Sampler(model, here, NARROW, EOS)
    sampler.horizon = 3  # experts on several ranks see all ranks' tokens
    return here.data_rank, [c.tokens for c in sampler.generate(groups([3, 1, 2])[here.data_rank :: here.data_size])]


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("name", ["ep2", "tp2_etp2", "tp2_ep2"])
def test_every_layout_samples_the_same_tokens(run_on, name: str) -> None:
    """Shards quantise what they hold: a row that is cut over ranks gets the values of the whole one."""
    world, layout = LAYOUTS[name]
    ((_, wanted),) = run_on(1, sampled_under, ParallelConfig())
    for rank, found in run_on(world, sampled_under, layout):
        data = layout.data(world)
        assert found == wanted[rank::data]


def refusals() -> list[str]:
    from megatron_ring.config.presets import RING_TINY
    from megatron_ring.errors import UserError

    said = []
    for exact, dense in ((True, 0), (False, RING_TINY.num_layers)):
        shape = replace(RING_TINY, first_dense_layers=dense)
        with pytest.raises(UserError) as caught:
            NARROW.check_weights(exact, shape.first_dense_layers < shape.num_layers)
        said.append(str(caught.value))
    return said


def test_refused_where_the_samplers_numbers_are_the_trainers_and_without_experts() -> None:
    exact, dense = refusals()
    assert "--sampling.weights fp8" in exact and "--exact" in exact and "--sampling.weights fp8" in dense
    USUAL.check_weights(exact=True, has_experts=False)


@pytest.mark.parametrize("capability", [7, 8, 12])
def test_refused_on_gpus_without_such_products(capability: int) -> None:
    from megatron_ring.errors import UserError

    with pytest.raises(UserError, match=rf"^--sampling.weights fp8: .* 9 or 10 .* this one has {capability}: .* bf16$"):
        NARROW.check_device(capability)
    USUAL.check_device(capability)
    for other in (9, 10, None):
        NARROW.check_device(other)


def test_evaluation_in_a_run_is_by_the_policys_own_weights() -> None:
    """Whatever the run samples with; on a device that does not take it, too."""
    from megatron_ring.config.operations import HeldOutConfig

    for training in (USUAL, NARROW, replace(NARROW, activations="fp8")):
        sampling = HeldOutConfig(temperature=0.5, top_p=0.9).sampling(training)
        assert sampling == replace(USUAL, temperature=0.5, top_p=0.9, max_new_tokens=training.max_new_tokens)
        sampling.check_weights(exact=True, has_experts=False)
        sampling.check_device(None)


def test_activations_in_fp8_are_of_experts_in_fp8_on_a_gpu() -> None:
    from megatron_ring.errors import UserError

    rounded = replace(NARROW, activations="fp8")
    rounded.check_weights(exact=False, has_experts=True)
    rounded.check_device(9)
    with pytest.raises(UserError, match=r"--sampling.activations fp8: .*this is a CPU"):
        rounded.check_device(None)
    with pytest.raises(UserError, match=r"--sampling.activations fp8: of experts with --sampling.weights fp8"):
        replace(USUAL, activations="fp8").check_weights(exact=False, has_experts=True)
