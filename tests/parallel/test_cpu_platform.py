"""What the CPU platform changes of torch."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from megatron_ring.parallel import cpu_platform
from tests.conftest import ROOT

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the platform is for machines without CUDA")


@pytest.fixture(autouse=True)
def _applied() -> None:
    cpu_platform.apply()


def test_a_start_does_not_import_the_compiler() -> None:
    code = (
        "import sys, torch, megatron_ring.parallel as parallel; parallel.prepare();"
        "import megatron_ring.rollout.opening; torch.compile(lambda x: x);"
        "print([name for name in sys.modules if name.startswith(('torch._inductor', 'torch._dynamo'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "[]\n", done.stdout + done.stderr


def test_a_function_is_compiled_when_it_is_called() -> None:
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    @torch.compile(backend=backend)
    def double(x: torch.Tensor, *, more: float = 0.0) -> torch.Tensor:
        """Doc."""
        return 2 * x + more

    plain = torch.compile(lambda x: x + 1, backend=backend)
    assert double.__name__ == "double" and double.__doc__ == "Doc."
    assert double(torch.ones(3), more=1.0).tolist() == [3.0] * 3 and len(graphs) == 1
    assert plain(torch.ones(3)).tolist() == [2.0] * 3 and len(graphs) == 2
    assert double(torch.zeros(3), more=1.0).tolist() == [1.0] * 3 and len(graphs) == 2


def test_a_module_is_compiled_as_before() -> None:
    model = torch.compile(torch.nn.Linear(2, 2), backend="eager")
    assert isinstance(model, torch.nn.Module) and model(torch.ones(1, 2)).shape == (1, 2)
