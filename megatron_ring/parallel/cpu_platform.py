"""Makes the CPU (with gloo) the "current CUDA device" of megatron-core, which assumes CUDA throughout.

Applied only where CUDA is absent, once, before megatron-core is imported. Nothing here changes a computation: streams and
events become no-ops (one CPU stream is always in order), device names are rewritten, and gloo gets the argument types it
accepts. With this, TP, EP, PP and DP run and are tested without a GPU.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FunctionType
from typing import Any

import torch
import torch.distributed as dist

CPU = torch.device("cpu")
CUDA_LIBRARIES = ("transformer_engine", "apex")  # megatron-core takes up what it can import, and calls their CUDA kernels
FACTORIES = ("empty", "zeros", "ones", "full", "tensor", "arange", "rand", "randn", "randint", "empty_like", "zeros_like",
             "ones_like", "full_like", "as_tensor", "empty_strided", "linspace")  # fmt: skip


class _Event:
    """A CUDA event of a device that is always done."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def record(self, *_: Any) -> None: ...

    def wait(self, *_: Any) -> None: ...

    def synchronize(self) -> None: ...

    def query(self) -> bool:
        return True


class _Stream:
    """A CUDA stream of a device that runs everything in program order."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def wait_stream(self, *_: Any) -> None: ...

    def wait_event(self, *_: Any) -> None: ...

    def record_event(self, event: _Event | None = None) -> _Event:
        return event or _Event()

    def synchronize(self) -> None: ...

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Stream)

    def __hash__(self) -> int:
        return 0


@contextmanager
def _stream_context(_stream: _Stream | None) -> Iterator[None]:
    yield


def _is_cuda_name(device: Any) -> bool:
    if isinstance(device, torch.device):
        return device.type == "cuda"
    return isinstance(device, str) and device.split(":")[0] == "cuda"


def _rewrite_device(factory: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(factory)
    def on_cpu(*args: Any, **kwargs: Any) -> Any:
        if _is_cuda_name(kwargs.get("device")):
            kwargs["device"] = CPU
        return factory(*args, **kwargs)

    return on_cpu


def _as_list(splits: Any) -> Sequence[int] | None:
    return None if splits is None else [int(size) for size in splits]


def _patch_distributed() -> None:
    """gloo wants split sizes as lists of int; megatron-core passes tensors or arrays."""
    original = dist.all_to_all_single

    @functools.wraps(original)
    def all_to_all_single(
        output: Any, input: Any, output_split_sizes: Any = None, input_split_sizes: Any = None,
        group: Any = None, async_op: bool = False,
    ) -> Any:  # fmt: skip
        return original(output, input, _as_list(output_split_sizes), _as_list(input_split_sizes), group, async_op)

    dist.all_to_all_single = all_to_all_single


def _patch_tensor_methods() -> None:
    original_type = torch.Tensor.type

    def type_(self: torch.Tensor, dtype: Any = None, non_blocking: bool = False, **kwargs: Any) -> Any:
        """Named as on a CUDA device: the optimizers compare with 'torch.cuda.FloatTensor'."""
        if dtype is None:
            return original_type(self).replace("torch.", "torch.cuda.", 1)
        return original_type(self, dtype, non_blocking, **kwargs)

    torch.Tensor.type = type_
    torch.Tensor.cuda = lambda self, *_, **__: self
    torch.Tensor.record_stream = lambda self, *_: None
    torch.nn.Module.cuda = lambda self, *_, **__: self


def _patch_compile() -> None:
    """A function is compiled when it is first called. megatron-core decorates many while it is imported, most are never
    called here, and the first decoration would import the compiler: 1.5 s of every start."""
    original = torch.compile

    @functools.wraps(original)
    def compile_(model: Any = None, **options: Any) -> Any:
        if not isinstance(model, FunctionType):  # a module, or the decorator with options
            return original(model, **options)

        @functools.cache
        def compiled() -> Any:
            return original(model, **options)

        return functools.wraps(model)(lambda *args, **kwargs: compiled()(*args, **kwargs))

    torch.compile = compile_


def is_applied() -> bool:
    """Whether this process is on the CPU platform."""
    return bool(getattr(torch.cuda, "_ring_cpu_platform", False))


def apply() -> None:
    """Install the CPU platform. Idempotent; must run before megatron.core is imported.

    Raises:
        RuntimeError: CUDA is available, where the real device must be used.
    """
    if torch.cuda.is_available():
        raise RuntimeError("the CPU platform is only for machines without CUDA")
    if is_applied():
        return
    torch.cuda._ring_cpu_platform = True
    for name in CUDA_LIBRARIES:
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]  # its import fails, as where it is not installed
    stream = _Stream()
    torch.cuda.current_device = lambda: CPU
    torch.cuda.set_device = lambda *_: None
    torch.cuda.device_count = lambda: 1
    torch.cuda.Stream = _Stream
    torch.cuda.Event = _Event
    torch.cuda.stream = _stream_context
    torch.cuda.current_stream = lambda *_: stream
    torch.cuda.default_stream = lambda *_: stream
    torch.cuda.synchronize = lambda *_: None
    torch.cuda.empty_cache = lambda: None
    for module in (torch.cuda, torch.cuda.random):
        module.get_rng_state = lambda *_, **__: torch.get_rng_state()
        module.set_rng_state = lambda state, *_, **__: torch.set_rng_state(state)
        module.manual_seed = lambda seed: torch.manual_seed(seed)
    for name in FACTORIES:
        setattr(torch, name, _rewrite_device(getattr(torch, name)))
    _patch_tensor_methods()
    _patch_distributed()
    _patch_compile()


def apply_to_megatron() -> None:
    """The part that needs megatron-core imported: its random-state setter writes to a CUDA generator. Idempotent."""
    from megatron.core.tensor_parallel import random

    random._set_cuda_rng_state = lambda state, *_, **__: torch.set_rng_state(state)
