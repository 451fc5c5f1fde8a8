"""The parts of a decoding step: kernels are told apart by name and place, times and floors add up."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch.autograd.profiler_util import EventList, FunctionEvent

from megatron_ring.config.sampling import SamplingConfig
from megatron_ring.errors import UserError
from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "tools"))  # as when the tool itself runs

from tools.profile_sampler import PASSES, ProfileSampler, new_tokens, requests_of, sampling_of
from tools.sampler_profile import PARTS, Kernel, Part, by_part, kernels_of, parts_of, table

LAYER = [
    ("_combine_and_norm", "experts"), ("nvjet_tst_64x8", "projections"), ("_attend_part", "attention"),
    ("_join_parts", "attention"), ("nvjet_tst_128x8", "projections"), ("_rms_norm_forward", "norms and RoPE"),
    ("_route_logits", "router"), ("_route_chosen", "router"), ("nvjet_tst_64x8", "shared experts"),
    ("_swiglu_forward", "shared experts"), ("sm90_xmma_gemm_bf16", "shared experts"), ("_sort_slots", "experts"),
    ("_gate_up", "experts"), ("_down", "experts"),
]  # fmt: skip
FEW = [*LAYER[:8], ("_few_gate_up", "shared experts"), ("_few_down", "shared experts"), ("_sort_slots", "experts"),
       ("_few_gate_up", "experts"), ("_few_down", "experts")]  # fmt: skip
MANY = [("_rms_norm_forward", "norms and RoPE"), ("nvjet_tst_64x8", "projections"), ("_rope_split", "norms and RoPE"),
        ("_attend_part", "attention"), ("nvjet_tst_128x8", "projections"), ("_rms_norm_forward", "norms and RoPE"),
        ("gemmSN_TN_kernel", "router"), ("_route_forward", "router"), *LAYER[8:]]  # fmt: skip
END = [("_permute_combine", "experts"), ("_rms_norm_forward", "norms and RoPE"), ("nvjet_tst_256x64", "head"),
       ("_draw_tile_statistics", "draw"), ("_draw_token", "draw"), ("vectorized_elementwise_kernel", "draw")]  # fmt: skip


def test_kernels_are_told_by_name_or_by_their_neighbours() -> None:
    names, wanted = zip(*MANY, *LAYER, *FEW, *FEW, *LAYER, *END, strict=True)
    assert parts_of(names) == list(wanted)
    assert set(wanted) | {"other"} == set(PARTS)
    assert parts_of(["vectorized_elementwise_kernel", *names])[0] == "other"


def test_times_of_passes_add_up_and_gaps_are_what_lies_between() -> None:
    kernels = [Kernel(name, 10.0 * i, 8.0) for i, (name, _) in enumerate([*LAYER, *END] * 2)]
    times, gaps = by_part(reversed(kernels), 2)
    count = len(LAYER) + len(END)
    assert sum(length for length, _ in times.values()) == pytest.approx(8.0 * count)
    assert sum(number for _, number in times.values()) == pytest.approx(count)
    assert times["experts"] == pytest.approx((40.0, 5.0)) and times["head"] == pytest.approx((8.0, 1.0))
    assert gaps == pytest.approx(2.0 * (2 * count - 1) / 2)
    beside = [Kernel("_gate_up", 0.0, 10.0), Kernel("_down", 4.0, 3.0), Kernel("_down", 12.0, 1.0)]
    assert by_part(beside, 1)[1] == pytest.approx(2.0)


# Both behind the second norm and before the next layer.
LAYERS = [(LAYER[:6], LAYER[8:11], [*LAYER[6:8], *LAYER[11:]]), (FEW[:6], FEW[8:10], [*FEW[6:8], *FEW[10:]])]


@pytest.mark.parametrize("layer_kernels", LAYERS, ids=["library", "few tokens"])
@pytest.mark.parametrize("branch", [lambda _: 3, lambda layer: 3 + layer], ids=["one side stream", "one a layer"])
@pytest.mark.parametrize("lagging", [0.0, 3.0, 90.0])
@pytest.mark.parametrize("swapped", [False, True])
def test_kernels_beside_each_other_are_told_by_their_stream(
    branch: Callable[[int], int], lagging: float, swapped: bool, layer_kernels: tuple[list[tuple[str, str]], ...]
) -> None:
    """Either branch may stay on the stream that the layer came from, also by turns, and be late."""
    kernels, wanted, now = [], dict.fromkeys(PARTS, 0), 0.0
    alone, shared, routed = layer_kernels

    def run(names: list[tuple[str, str]], stream: int, at: float) -> float:
        for name, part in names:
            kernels.append(Kernel(name, at, 8.0, stream))
            wanted[part] += 1
            at += 10.0
        return at

    home = 0
    for layer in range(5):
        now = run(alone, home, now)
        here, beside = (routed, shared) if swapped else (shared, routed)
        away = branch(layer) if home == 0 else 0
        ends = run(here, home, now), run(beside, away, now + lagging)
        home = away if layer % 2 else home  # the next layer goes on in the one or in the other
        now = max(ends)
    run(END, home, now)
    times, _ = by_part(kernels, 1)
    assert {part: count for part, (_, count) in times.items()} == pytest.approx(wanted)


def test_a_profile_tells_the_stream_of_each_kernel_and_nothing_else_of_a_device() -> None:
    cuda, cpu = torch.autograd.DeviceType.CUDA, torch.autograd.DeviceType.CPU
    about = [("_gate_up", cuda, 7), ("aten::mm", cpu, 1), ("Memcpy DtoH", cuda, 7), ("_swiglu_forward", cuda, 20)]

    class Profile:
        def events(self) -> EventList:
            return EventList(
                FunctionEvent(i, name, 0, 10.0 * i, 10.0 * i + 4.0, device_type=device, device_resource_id=stream)
                for i, (name, device, stream) in enumerate(about)
            )

    assert kernels_of(Profile()) == [Kernel("_gate_up", 0.0, 4.0, 7), Kernel("_swiglu_forward", 30.0, 4.0, 20)]


def test_the_table_names_both_floors() -> None:
    rates = {"read_gb_per_second": 1000.0, "gemm_tflops": 100.0}
    parts = {"experts": Part(100.0, 4.0, read=50e6, flops=1e9), "other": Part(1.0, 2.0)}
    head, _, experts, other = table(256, 2, parts, rates, 0.5, 40.0).splitlines()
    assert "256 rows: 0.500 ms" in head and "0.040 ms of it between" in head and "add up to 0.101 ms" in head
    assert experts.split() == ["experts", "50.0", "2.0", "25.0", "30.0", "50%", "60%"]
    assert other.split() == ["other", "0.5", "1.0", "0.0", "0.0"]


def test_no_response_ends_before_the_last_has_been_profiled() -> None:
    config = ProfileSampler(rows=(2, 40), prompt_tokens=9000, samples=16, sampling=SamplingConfig(prefill_tokens=16_384))
    assert sampling_of(config).max_batch == 40
    assert new_tokens(config, 40, 16) == (PASSES + 2) * 16 + 1  # three prompts: two steps
    assert new_tokens(replace(config, samples=1), 40, 16) == (PASSES + 22) * 16 + 1
    requests = requests_of(50, 40, config, 65)
    assert len(requests) == 40 and len({tuple(r.prompt_tokens) for r in requests}) == 3
    assert len({request.seed for request in requests}) == 40
    alone = requests_of(50, 40, replace(config, samples=1), 65)
    assert len({tuple(r.prompt_tokens) for r in alone}) == 40 and {r.max_new_tokens for r in alone} == {65}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rows": ()}, "--rows"),
        ({"rows": (0,)}, "--rows"),
        ({"prompt_tokens": 1}, "--prompt-tokens"),
        ({"layers": 0}, "--layers"),
        ({"samples": 0}, "--samples"),
    ],
)
def test_what_cannot_be_profiled_is_refused(settings: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        ProfileSampler(**settings)
