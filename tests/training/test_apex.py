"""NVIDIA Apex where it is not, and the place in the linear layers that its product takes, filled by a product of torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_ring.config.optimizer import OptimizerConfig
from megatron_ring.config.parallel import ParallelConfig
from megatron_ring.errors import UserError
from tests.layouts import LAYOUTS
from tests.training.test_trainer import ODD, OPTIMIZER, ROUTER, step_batches


def refusal(apex: str, packages: str = "") -> str:
    """What `--optimizer.apex` ends with, in a process that finds modules in `packages` too."""
    import sys

    from megatron_ring.model.ring_model import build_model
    from megatron_ring.parallel import context
    from megatron_ring.training.trainer import Trainer

    here = context.initialize(ParallelConfig(), ODD, seed=0)
    sys.path.insert(0, packages)
    try:
        Trainer(build_model(ODD, here, ROUTER), here, replace(OPTIMIZER, apex=apex))
    except UserError as error:
        return str(error)
    finally:
        sys.path.remove(packages)
        for name in ("amp_C", "fused_weight_gradient_mlp_cuda"):
            sys.modules.pop(name, None)
    return ""


@pytest.mark.distributed
@pytest.mark.skipif(torch.cuda.is_available(), reason="it may be there")
@pytest.mark.parametrize(
    ("apex", "lacks"),
    [("both", "fused_weight_gradient_mlp_cuda"), ("gradients", "fused_weight_gradient_mlp_cuda"), ("adam", "amp_C")],
)
def test_absent(run_on, apex: str, lacks: str) -> None:
    (message,) = run_on(1, refusal, apex)
    assert message.startswith(
        f"--optimizer.apex: NVIDIA Apex is not installed (there is no {lacks}; PyPI's apex is another "
    )
    assert "git clone https://github.com/NVIDIA/apex" in message and "\n" not in message


@pytest.mark.distributed
@pytest.mark.skipif(torch.cuda.is_available(), reason="it may be there")
def test_unusable(run_on, tmp_path: Path) -> None:
    """Built for another torch; and on a machine without a GPU."""
    extension = tmp_path / "amp_C.py"
    extension.write_text("raise ImportError('undefined symbol: stand_in')")
    (message,) = run_on(1, refusal, "adam", str(tmp_path))
    assert message.endswith("amp_C cannot be imported, build it for this torch: undefined symbol: stand_in")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "amp_C.py").write_text("")
    (message,) = run_on(1, refusal, "adam", str(tmp_path / "empty"))
    assert message == "--optimizer.apex: NVIDIA Apex's kernels want a CUDA device"


def test_its_adam_has_no_short_moments() -> None:
    with pytest.raises(UserError, match=r"--optimizer\.apex both: its Adam keeps fp32 moments"):
        OptimizerConfig(moments="bf16", apex="both")
    assert OptimizerConfig(moments="bf16", apex="gradients").apex == "gradients"


def trained(parallel: ParallelConfig, by_product: bool, recompute: Any) -> tuple[int, dict[str, torch.Tensor]]:
    """(products added, weights after three steps)."""
    from megatron_ring.checkpoint.weights import initialize_weights
    from megatron_ring.model.ring_model import build_model
    from megatron_ring.parallel import context
    from megatron_ring.training.gradient_buffers import GradientBuffers
    from megatron_ring.training.losses import SFTLoss
    from megatron_ring.training.trainer import Trainer

    here = context.initialize(parallel, ODD, seed=0)
    model = build_model(ODD, here, ROUTER, recompute=recompute)
    initialize_weights(model, seed=2)
    trainer, calls = Trainer(model, here, OPTIMIZER), 0

    def add(total_ba: torch.Tensor, dy_nb: torch.Tensor, x_na: torch.Tensor) -> None:
        nonlocal calls
        calls += 1
        total_ba.addmm_(dy_nb.t(), x_na)

    if by_product:
        trainer.buffers = GradientBuffers(trainer.ddp, add)
    for step in range(3):
        trainer.train_step(step_batches(step)[here.data_rank :: here.data_size], SFTLoss(), 2e-3)
    return calls, {name: weight.detach().clone() for name, weight in model.named_parameters()}


@pytest.mark.distributed
@pytest.mark.parametrize(("layout", "recompute"), [("one", "none"), ("one", "full"), ("ep2", "none")])
def test_products_that_add_to_the_buffers_train_the_same(run_on, layout: str, recompute: str) -> None:
    """Four products of a layer: qkv, projection, and the two of its dense MLP or shared experts."""
    processes, parallel = LAYOUTS[layout]
    for (none, wanted), (calls, found) in zip(
        run_on(processes, trained, parallel, False, recompute),
        run_on(processes, trained, parallel, True, recompute),
        strict=True,
    ):
        assert none == 0 and calls == 3 * 4 // processes * ODD.num_layers * 4
        for name, weight in wanted.items():
            torch.testing.assert_close(found[name], weight, rtol=1e-5, atol=1e-6, msg=name)
