"""The sampler on a GPU: its kernels against float64, graphs against single launches, its numbers against the trainer's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from megatron_ring.config.parallel import ParallelConfig
from megatron_ring.config.presets import RING_LITE
from megatron_ring.config.sampling import RequestSampling, SamplingConfig
from tests.layouts import LAYOUTS

if not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)

SHAPE = replace(RING_LITE, num_layers=2, vocab_size=16_384)  # of the published width


@pytest.mark.parametrize(("tokens", "only"), [(1, None), (3, None), (128, None), (256, None), (300, 7), (1000, None)])
def test_experts_of_few_tokens(tokens: int, only: int | None) -> None:
    from megatron_ring.model.kernels import few_tokens_triton

    device, k, experts, hidden, width = torch.device("cuda"), 6, 64, 2048, 1408
    generator = torch.Generator(device).manual_seed(tokens)
    draw = lambda *shape: torch.randn(shape, generator=generator, device=device).bfloat16()  # noqa: E731
    x, gate_up, down = draw(tokens, hidden), draw(experts, 2 * width, hidden) * 0.02, draw(experts, hidden, width) * 0.02
    scores = torch.rand(tokens, experts, generator=generator, device=device)
    if only:
        scores[:, only:] = -1.0
    weights, experts_tk = torch.softmax(scores, 1).topk(k, dim=1)
    y_nh, back = few_tokens_triton.sorted_outputs(x, weights.contiguous(), experts_tk.contiguous(), gate_up, down)
    for t in range(0, tokens, max(1, tokens // 5)):
        for j in range(k):
            e = int(experts_tk[t, j])
            gate, up = (gate_up[e].double() @ x[t].double()).chunk(2)
            wanted = down[e].double() @ (torch.nn.functional.silu(gate) * up * weights[t, j].double())
            found = y_nh[back[t, j].long()].double()
            assert (found - wanted).norm() / wanted.norm() < 1e-2


@pytest.mark.parametrize("tokens", [1, 40, 130, 300, 500, 1000, 2000])
def test_experts_in_fp8_are_those_of_the_widened_weights(tokens: int) -> None:
    """Against float64, products in FP8 of all sizes of programs are off by little more than those in bf16 of such weights,
    with outliers among the activations and without."""
    from megatron_ring.model.kernels import few_tokens_triton
    from megatron_ring.model.kernels.fp8 import Fp8Matrix

    device, k, experts, hidden, width = torch.device("cuda"), 6, 64, 2048, 1408
    generator = torch.Generator(device).manual_seed(tokens)
    draw = lambda *shape: torch.randn(shape, generator=generator, device=device).bfloat16()  # noqa: E731
    x = draw(tokens, hidden)
    x[::2, 77] = 200.0
    narrow = Fp8Matrix.of(draw(experts, 2 * width, hidden) * 0.02), Fp8Matrix.of(draw(experts, hidden, width) * 0.02)
    weights, chosen = torch.softmax(torch.rand(tokens, experts, generator=generator, device=device), 1).topk(k, dim=1)
    weights, chosen = weights.contiguous(), chosen.contiguous()
    found, back = few_tokens_triton.sorted_outputs(x, weights, chosen, *narrow)
    gate_up, down = (matrix.wide(torch.bfloat16) for matrix in narrow)
    wide, wide_back = few_tokens_triton.sorted_outputs(x, weights, chosen, gate_up, down)
    assert torch.equal(back, wide_back)
    errors = []
    for t in range(0, tokens, max(1, tokens // 40)):
        for j in range(k):
            e, row = int(chosen[t, j]), int(back[t, j])
            gate, up = (gate_up[e].double() @ x[t].double()).chunk(2)
            wanted = down[e].double() @ (torch.nn.functional.silu(gate) * up * weights[t, j].double())
            errors.append([((y[row].double() - wanted).norm() / wanted.norm()).item() for y in (found, wide)])
    in_fp8, in_bf16 = torch.tensor(errors).square().mean(0).sqrt().tolist()
    assert in_fp8 < 1.5 * in_bf16 and in_fp8 < 5e-3


@pytest.mark.parametrize(("rows", "longest"), [(1, 20_000), (40, 500), (40, 5000), (700, 2000)])
def test_decoding_is_as_each_sequence_alone(rows: int, longest: int) -> None:
    """Bit by bit, in every layer, when parts of a context are done in any order; and as float64 has it."""
    from megatron_ring.sampler.attention import DecodeAttention

    generator = torch.Generator("cuda").manual_seed(rows)
    lengths = torch.randint(1, longest, (rows,), generator=generator, device="cuda")
    lengths[0], lengths[-1] = longest, 0 if rows > 1 else longest
    columns, pages = -(-longest // 32), 4000
    keys, values = (torch.randn(pages, 32, 4, 128, generator=generator, device="cuda").bfloat16() for _ in range(2))
    table = torch.randint(pages, (rows, columns), generator=generator, device="cuda").int()  # sequences share pages
    q = torch.randn(rows, 16, 128, generator=generator, device="cuda").bfloat16()
    attention = DecodeAttention(table, lengths, longest)
    layers = [attention(q, keys, values) for _ in range(50)]
    assert all(torch.equal(layer, layers[0]) for layer in layers)
    assert rows == 1 or not layers[0][-1].any()
    for row in range(0, rows, max(1, rows // 7)):
        one, length = slice(row, row + 1), int(lengths[row])
        if length == 0:
            continue
        assert torch.equal(DecodeAttention(table[one], lengths[one], length)(q[one], keys, values)[0], layers[0][row])
        k, v = (x[table[row].long()].flatten(0, 1)[:length].double().repeat_interleave(4, dim=1) for x in (keys, values))
        weights = torch.softmax(torch.einsum("hd,lhd->hl", q[row].double(), k) / 128**0.5, dim=-1)
        wanted = torch.einsum("hl,lhd->hd", weights, v)
        assert (layers[0][row].double() - wanted).norm() / wanted.norm() < 1e-2


def test_chunks_that_go_on() -> None:
    from megatron_ring.sampler.attention import ChunkAttention

    torch.manual_seed(0)
    keys, values = (torch.randn(40, 32, 4, 128, device="cuda").bfloat16() for _ in range(2))
    table = torch.randperm(39, device="cuda")[:33].add(1).view(3, 11).int()
    ends, counts = [340, 33, 200], [100, 33, 1]
    q = torch.randn(sum(counts), 16, 128, device="cuda").bfloat16()
    found, start = ChunkAttention(table, ends, counts)(q, keys, values), 0
    for row, end, count in zip(table, ends, counts, strict=True):
        k, v = (x[row.long()].flatten(0, 1)[:end].double().repeat_interleave(4, dim=1) for x in (keys, values))
        scores = torch.einsum("qhd,lhd->hql", q[start : start + count].double(), k) / 128**0.5
        later = torch.arange(end, device="cuda")[None, :] > torch.arange(end - count, end, device="cuda")[:, None]
        wanted = torch.einsum("hql,lhd->qhd", scores.masked_fill(later, -torch.inf).softmax(-1), v)
        assert (found[start : start + count].double() - wanted).norm() / wanted.norm() < 1e-2
        start += count


def model_and_requests(parallel: ParallelConfig, dtype: torch.dtype) -> tuple[Any, Any, list[Any]]:
    from megatron_ring.checkpoint.weights import initialize_weights
    from megatron_ring.model.ring_model import build_model
    from megatron_ring.parallel import context
    from megatron_ring.sampler.requests import GenerationRequest, request_seed

    here = context.initialize(parallel, SHAPE, seed=0)
    model = build_model(SHAPE, here, dtype=dtype)
    initialize_weights(model, seed=11)
    generator = torch.Generator().manual_seed(5)
    prompts = [torch.randint(4, 16_000, (5 + 77 * i % 600,), generator=generator).tolist() for i in range(12)]
    requests = [GenerationRequest(p, request_seed(i, k), 40 + 50 * k) for i, p in enumerate(prompts) for k in range(3)]
    return model, here, requests


def sampled(settings: dict[str, Any]) -> tuple[list[list[int]], list[list[float]], list[list[float]], float]:
    """Tokens and log-probabilities of the sampler, the latter by the trainer's forward too, and the memory that is left
    taken, in bytes."""
    from megatron_ring.model.layout import PackedLayout
    from megatron_ring.model.ring_model import forward_all_stages
    from megatron_ring.sampler.sampler import Sampler

    model, here, requests = model_and_requests(ParallelConfig(), torch.bfloat16)
    sampler = Sampler(model, here, SamplingConfig(**settings), eos_id=-1)
    found = sampler.generate(requests)
    sampler.release()
    held = []
    for _ in range(4):
        torch.cuda.synchronize()
        held.append(torch.cuda.memory_allocated())
        assert [c.tokens for c in sampler.generate(requests)] == [c.tokens for c in found]
        sampler.release()
    trained = []
    for request, completion in zip(requests, found, strict=True):
        whole = [*request.prompt_tokens, *completion.tokens]
        tokens = torch.tensor(whole, device="cuda")
        logits = forward_all_stages(model, tokens, PackedLayout(torch.arange(len(whole), device="cuda"), [len(whole)]))
        assert logits is not None
        log_p = torch.log_softmax(logits.float() / (settings.get("temperature") or 1.0), -1)
        log_p = log_p[len(request.prompt_tokens) - 1 : -1]
        trained.append(log_p.gather(1, tokens[len(request.prompt_tokens) :, None])[:, 0].tolist())
    return [c.tokens for c in found], [c.logprobs for c in found], trained, float(max(held) - min(held))


def sampled_with_librarys_shared_experts(settings: dict[str, Any]) -> tuple[list[list[int]], list[list[float]], list, float]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("megatron_ring.model.kernels.few_tokens_triton.MOST_SHARED", 0)
        return sampled(settings)


def alike(a: list[list[int]], b: list[list[int]]) -> float:
    """The share of tokens that are the same, in the mean of the responses: one drawn otherwise changes all that follow."""
    shares = [sum(x == y for x, y in zip(one, other, strict=True)) / len(one) for one, other in zip(a, b, strict=True)]
    return sum(shares) / len(shares)


@pytest.mark.distributed
@pytest.mark.parametrize(
    "settings",
    [{}, {"top_p": 0.9, "top_k": 50, "min_p": 0.01}, {"temperature": 0.0}, {"stop_token_ids": (7,)}, {"weights": "fp8"}],
)
def test_graphs_are_what_single_launches_are(run_on, settings: dict[str, Any]) -> None:
    settings = {"max_batch": 20, **settings}
    tokens, logprobs, trained, left = run_on(1, sampled, settings)[0]
    assert left == 0
    gaps = torch.tensor([abs(a - b) for x, y in zip(logprobs, trained, strict=True) for a, b in zip(x, y, strict=True)])
    print(f"{settings}: sampler and trainer {gaps.mean():.2e} nats apart in the mean, {gaps.max():.2e} at most")
    assert gaps.mean() < (0.1 if "weights" in settings else 0.02)
    plain = run_on(1, sampled, {**settings, "cuda_graphs": False})[0]
    if "stop_token_ids" not in settings:
        assert all(len(response) in (40, 90, 140) for response in tokens)
        library = run_on(1, sampled_with_librarys_shared_experts, settings)[0]  # which single launches have
        assert alike(library[0], plain[0]) > 0.7  # bf16 rounds otherwise in a batch of another size


MIXED = [
    RequestSampling(), RequestSampling(temperature=0.6, top_p=0.9), RequestSampling(temperature=0.0),
    RequestSampling(temperature=1.3), RequestSampling(top_k=30, min_p=0.02),
    RequestSampling(temperature=0.8, top_k=50, top_p=0.9),
]  # fmt: skip


def mixed_and_alone() -> tuple[list[list[int]], list[list[int]], list[list[int]], list[int]]:
    """Tokens of requests that all have other settings, by graphs and by single launches; those of the same prompts where no
    row is cut; and the number of graphs after each call."""
    from megatron_ring.sampler.sampler import Sampler

    model, here, requests = model_and_requests(ParallelConfig(), torch.float32)
    mixed = [replace(request, sampling=MIXED[i % len(MIXED)]) for i, request in enumerate(requests)]
    uncut = [replace(request, sampling=MIXED[3 * (i % 2)]) for i, request in enumerate(requests)]
    sampler, graphs = Sampler(model, here, SamplingConfig(max_batch=64), eos_id=-1), []
    found = []
    for asked in (requests, uncut, mixed, uncut, mixed):
        found.append(sampler.generate(asked))
        graphs.append(sampler.runner.captured)
    for again, first in ((found[3], found[1]), (found[4], found[2])):
        assert [c.tokens for c in again] == [c.tokens for c in first]
    plain = Sampler(model, here, SamplingConfig(max_batch=64, cuda_graphs=False), eos_id=-1).generate(mixed)
    return [list(c.tokens) for c in found[2]], [list(c.tokens) for c in plain], [list(c.tokens) for c in found[1]], graphs


@pytest.mark.distributed
def test_rows_of_one_graph_differ_in_their_settings(run_on) -> None:
    """In fp32. Other settings need no other graph, cuts one more for each batch and span."""
    mixed, plain, uncut, graphs = run_on(1, mixed_and_alone)[0]
    first, same, cut, *later = graphs
    assert first == same and cut <= 2 * first and later == [cut, cut]
    assert alike(mixed, plain) > 0.95
    assert alike(mixed[::12], uncut[::12]) > 0.9  # these have the first of the settings in both


def warm_and_cold(seconds: int) -> tuple[tuple[int, int, int], int, list[list[int]], list[list[int]]]:
    """What a warm-up captured, what there is after requests of all sizes came one after another and left, and their tokens
    with and without it. 0 seconds: the first look ends it."""
    from megatron_ring.sampler.sampler import Sampler
    from megatron_ring.sampler.warm_up import warm_up

    model, here, requests = model_and_requests(ParallelConfig(), torch.float32)
    mixed = [replace(request, sampling=MIXED[i % len(MIXED)]) for i, request in enumerate(requests)]
    found, done, after = [], (0, 0, 0), 0
    settings = SamplingConfig(max_batch=12, kv_tokens=12 * 1024)
    for warms in (True, False):
        sampler, completions = Sampler(model, here, settings, eos_id=-1), {}
        engine = sampler.engine()
        if warms:
            told = warm_up(engine, lambda: not seconds)
            done = told.captured, told.left, told.longest
        for request in mixed:
            engine.add(request)
            completions |= engine.step().finished
        engine.close()
        while not (report := engine.step()).closed:
            completions |= report.finished
        after = after or sampler.runner.captured
        found.append([list(completions[number].tokens) for number in sorted(completions)])
        sampler.release()
    return done, after, found[0], found[1]


@pytest.mark.distributed
def test_a_warm_server_captures_nothing_more(run_on) -> None:
    """In fp32. All graphs are there before the first request, and answers are those without."""
    (captured, left, longest), after, warm, cold = run_on(1, warm_and_cold, 1)[0]
    # Batches of 1, 2, 4, 8 and 16 (12 at most are asked for), contexts up to 512 * 2^i, cut and not.
    assert left == 0 and longest >= 12 * 1024 and after == captured == 10 * (longest // 512).bit_length()
    assert alike(warm, cold) > 0.95
    (captured, left, longest), after, *_ = run_on(1, warm_and_cold, 0)[0]
    assert left > 0 and longest == 0 and after > captured  # only what the made-up prompts were decoded with


def responses(parallel: ParallelConfig) -> tuple[int, list[list[int]]]:
    from megatron_ring.sampler.sampler import Sampler

    model, here, requests = model_and_requests(parallel, torch.float32)
    sampler = Sampler(model, here, SamplingConfig(max_batch=20), eos_id=-1)
    assert sampler.graphs
    return here.data_rank, [c.tokens for c in sampler.generate(requests[here.data_rank :: here.data_size])]


@pytest.fixture(scope="module")
def alone(run_on) -> list[list[int]]:
    """Responses of one GPU."""
    found: list[list[int]] = run_on(1, responses, ParallelConfig())[0][1]
    return found


@pytest.mark.distributed
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices")
@pytest.mark.parametrize("layout", ["tp2", "ep2", "dp2"])
def test_layouts_agree_with_one_gpu(run_on, alone: list[list[int]], layout: str) -> None:
    """In fp32, by graphs that hold NCCL's collectives."""
    processes, parallel = LAYOUTS[layout]
    for data_rank, found in run_on(processes, responses, parallel):
        share = alike(found, alone[data_rank :: parallel.data(processes)])
        print(f"{layout}: {share:.4f} of the tokens of data-parallel rank {data_rank} as on one GPU")
        assert share > 0.95
