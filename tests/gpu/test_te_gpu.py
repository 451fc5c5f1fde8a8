"""On a GPU with Transformer Engine: the layers made of its modules against the native ones, same weights and tokens."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from megatron_ring.config.model import ModelConfig
from megatron_ring.config.optimizer import OptimizerConfig
from megatron_ring.config.parallel import ParallelConfig
from megatron_ring.config.presets import RING_LITE, RING_TINY

if not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)
if importlib.util.find_spec("transformer_engine") is None:
    pytest.skip("no Transformer Engine", allow_module_level=True)

SMALL = replace(RING_TINY, num_layers=3, hidden_size=256, head_dim=64, first_dense_layers=1, qkv_bias=True)
SLICE = replace(RING_LITE, num_layers=2, vocab_size=16_384)
# (lengths, tokens of padding behind them): one batch; packed; packed, padded
PACKINGS = {"equal": ([512, 512], 0), "uneven": ([1, 700, 130, 193], 0), "padded": ([300, 401, 3], 320)}


@pytest.fixture(autouse=True)
def one_process():
    from megatron_ring.parallel import context

    yield
    context.shutdown()
    torch.cuda.empty_cache()


def build(shape: ModelConfig, layer_impl: str, recompute: str = "none", dtype: torch.dtype = torch.bfloat16):
    from megatron_ring.checkpoint.weights import initialize_weights
    from megatron_ring.model.ring_model import build_model
    from megatron_ring.parallel import context

    context.shutdown()
    here = context.initialize(ParallelConfig(), shape, seed=0)
    model = build_model(shape, here, dtype=dtype, recompute=recompute, layer_impl=layer_impl)
    initialize_weights(model, seed=3)
    return model, here


@pytest.fixture
def fixed_routes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every router chooses by the token's place, never the last expert: near-ties fall the other way under another rounding,
    and a token at another expert is no error of the layers."""

    def topk(values_te: torch.Tensor, k: int, dim: int = -1) -> tuple[torch.Tensor, torch.Tensor]:
        tokens, experts = values_te.shape
        places = 5 * torch.arange(tokens, device=values_te.device)[:, None] + torch.arange(k, device=values_te.device)
        chosen = places % (experts - 1)
        return values_te.gather(dim, chosen), chosen

    monkeypatch.setattr(torch, "topk", topk)


def loss_and_gradients(model, lengths: Sequence[int], behind: int) -> tuple[float, dict[str, torch.Tensor]]:
    """Mean cross-entropy of the sequences; `behind`: tokens of padding."""
    from megatron_ring.model.layout import PackedLayout
    from megatron_ring.model.ring_model import forward_packed

    real, total = sum(lengths), sum(lengths) + behind
    generator = torch.Generator().manual_seed(1)
    tokens, targets = torch.randint(model.ring_config.vocab_size, (2, total), generator=generator).cuda()
    positions = torch.cat([torch.arange(length) for length in [*lengths, behind]]).cuda()
    padding = torch.arange(total).cuda() >= real
    model.train()
    model.router_losses.start_step(1.0)
    hidden = forward_packed(model, tokens, PackedLayout(positions, list(lengths)), padding=padding)
    rows = torch.arange(real).cuda()
    loss = model.output_layer.loss(hidden, rows, targets[:real], 1.0, lambda logp, _h, _part: -logp.sum() / real)
    loss.backward()
    return loss.item(), {name: parameter.grad.float() for name, parameter in model.named_parameters()}


def exact(shape: ModelConfig, lengths: Sequence[int], behind: int) -> tuple[float, dict[str, torch.Tensor]]:
    """Of the native layers in fp32, with the weights that bf16 has."""
    model, _ = build(shape, "native", dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())
    return loss_and_gradients(model, lengths, behind)


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return ((found - wanted).norm() / wanted.norm().clamp(min=1e-30)).item()


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize(("shape", "recompute"), [(SMALL, "none"), (SMALL, "experts"), (SMALL, "full"), (SLICE, "none")])
def test_as_near_to_fp32_as_the_native_layers(shape: ModelConfig, recompute: str, packing: str, fixed_routes: None) -> None:
    lengths, behind = PACKINGS[packing]
    wanted_loss, wanted = exact(shape, lengths, behind)
    errors = {}
    for layer_impl in ("native", "te"):
        model, _ = build(shape, layer_impl, recompute)
        loss, found = loss_and_gradients(model, lengths, behind)
        assert abs(loss / wanted_loss - 1) < 2e-3, layer_impl
        errors[layer_impl] = {name: relative(found[name], wanted[name]) for name in wanted}
        del model, found
    native, te = errors["native"], errors["te"]
    largest = sorted(((te[name], native[name], name) for name in te), reverse=True)[:3]
    print(f"{packing}, {recompute}: te, native, weight: {largest}", file=sys.stderr)
    assert all(te[name] < 2.0 * native[name] + 3e-3 for name in te), largest


def test_the_same_parameters() -> None:
    from megatron_ring.checkpoint.pieces import weight_pieces

    marks = ("sequence_parallel", "allreduce", "tensor_model_parallel")
    described = []
    for layer_impl in ("native", "te"):
        model, _ = build(SMALL, layer_impl)
        pieces = {(piece.key, piece.global_shape, str(piece.box), piece.saved_here) for piece in weight_pieces(model)}
        parameters = {
            name: (p.shape, p.dtype, [bool(getattr(p, mark, mark == "allreduce")) for mark in marks], p.detach().cpu())
            for name, p in model.named_parameters()
        }
        described.append((pieces, parameters))
    (native_pieces, native), (te_pieces, te) = described
    assert te_pieces == native_pieces and list(te) == list(native)
    for name, (*facts, values) in native.items():
        assert facts == list(te[name][:3]), name
        assert torch.equal(values, te[name][3]), name


def test_without_gradients() -> None:
    from megatron_ring.model.layout import PackedLayout
    from megatron_ring.model.ring_model import forward_all_stages

    tokens = torch.randint(SMALL.vocab_size, (600,), generator=torch.Generator().manual_seed(2)).cuda()
    positions = torch.cat((torch.arange(200), torch.arange(400))).cuda()
    found = []
    for layer_impl in ("native", "te"):
        model, _ = build(SMALL, layer_impl)
        model.eval()
        logits = forward_all_stages(model, tokens, PackedLayout(positions, [200, 400]))
        assert logits is not None
        found.append(logits.float())
    assert relative(found[1], found[0]) < 3e-2


def test_training_goes_the_same_way() -> None:
    from megatron_ring.data.packing import pack_sequences
    from megatron_ring.data.sequences import TokenSequence
    from megatron_ring.training.losses import SFTLoss
    from megatron_ring.training.trainer import Trainer

    generator = torch.Generator().manual_seed(5)
    texts = [torch.randint(SMALL.vocab_size, (n,), generator=generator).tolist() for n in (180, 30, 250)]
    batch = pack_sequences([TokenSequence(text, [True] * len(text)) for text in texts], 512, 0)
    curves = []
    for layer_impl in ("native", "te"):
        model, here = build(SMALL, layer_impl)
        trainer = Trainer(model, here, OptimizerConfig(lr=3e-3))
        curves.append([trainer.train_step([batch, batch], SFTLoss(), 3e-3).mean("loss") for _ in range(8)])
    print(f"losses, native and te: {curves}", file=sys.stderr)
    assert curves[0][-1] < curves[0][0] - 1
    assert curves[1] == pytest.approx(curves[0], rel=0.02)
