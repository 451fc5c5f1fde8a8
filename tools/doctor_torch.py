"""doctor.py's probes of torch and the GPUs. They run in a child process: the import of a damaged library may end it."""

from __future__ import annotations

import os
import re
import shutil
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # `tools` may be a package of someone else's; doctor.py puts this folder on the path
    from tools.doctor_findings import GIB, Finding, ask, installed, version_of
else:
    from doctor_findings import GIB, Finding, ask, installed, version_of


def gpu_driver() -> str:
    """Version of NVIDIA's driver, "" where there is none."""
    if shutil.which("nvidia-smi"):
        output, wrong = ask(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"])
        if not wrong and output.strip():
            return output.split()[0]
    file = Path("/proc/driver/nvidia/version")
    found = re.search(r"Kernel Module\D*([\d.]+)", file.read_text()) if file.is_file() else None
    return found.group(1) if found else ""


def gpus() -> Iterator[Finding]:
    import torch

    driver = gpu_driver()
    if not torch.cuda.is_available():
        yield no_gpu(driver)
        return
    yield Finding("CUDA", f"driver {driver or 'not known'}, torch built for {torch.version.cuda}", "ok")
    count = torch.cuda.device_count()
    for index in range(count):
        card = torch.cuda.get_device_properties(index)
        value = f"{card.name}, {card.total_memory / GIB:.0f} GiB, compute capability {card.major}.{card.minor}"
        yield Finding(f"GPU {index}", value, "ok")
    if torch.cuda.is_bf16_supported(including_emulation=False):
        yield Finding("bf16", "in hardware", "ok")
    else:
        yield Finding("bf16", "not in hardware: slow", "broken", "run the mains with --precision fp32")
    if count > 1:
        pairs = [(a, b) for a in range(count) for b in range(count) if a != b]
        apart = [f"{a}→{b}" for a, b in pairs if not torch.cuda.can_device_access_peer(a, b)]
        far = f"no between {', '.join(apart[:6])}{' …' if len(apart) > 6 else ''}: NCCL goes through host memory"
        yield Finding("Peer access", far if apart else f"yes, among all {count} GPUs", "ok")


def no_gpu(driver: str) -> Finding:
    """Why torch sees no GPU."""
    import torch

    if not driver:
        return Finding("GPU", "none: CPU over gloo", "unused")
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1"):
        return Finding("GPU", "hidden by CUDA_VISIBLE_DEVICES", "unused", "unset CUDA_VISIBLE_DEVICES")
    if torch.version.cuda is None:
        value = f"driver {driver} is here, but torch {torch.__version__} is built without CUDA"
        return Finding("GPU", value, "broken", "pip install --force-reinstall torch  (PyPI's for Linux has CUDA)")
    value = f"driver {driver} is here, but torch for CUDA {torch.version.cuda} cannot use it"
    try:
        torch.cuda.init()
    except Exception as error:
        value += f": {str(error).strip().splitlines()[0]}"
    hint = "pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/cu126  (or a newer driver)"
    return Finding("GPU", value, "broken", hint)


def target() -> tuple[Any, Any]:
    """Device and default dtype that training will use: as `parallel.device` and `--precision auto` choose."""
    import torch

    return (torch.device("cuda"), torch.bfloat16) if torch.cuda.is_available() else (torch.device("cpu"), torch.float32)


def device_and_backend() -> Iterator[Finding]:
    import torch
    import torch.distributed as dist

    device, _ = target()
    cuda = device.type == "cuda"
    value = f"CUDA, {torch.cuda.device_count()} GPU(s), bf16" if cuda else "CPU, fp32"
    yield Finding("Device", value, "ok", needed=True)
    gloo = dist.is_available() and dist.is_gloo_available()
    nccl = dist.is_available() and dist.is_nccl_available()
    if not gloo or (cuda and not nccl):
        value = f"this torch has no {'NCCL' if gloo else 'gloo'}"
        yield Finding("Communication", value, "missing", "pip install --force-reinstall torch", True)
        return
    version = ".".join(map(str, torch.cuda.nccl.version())) if cuda else ""
    yield Finding("Communication", f"NCCL {version} between GPUs, gloo on the hosts" if cuda else "gloo", "ok", needed=True)


def attention() -> Iterator[Finding]:
    import torch

    device, dtype = target()
    q, k, v = (torch.randn(1, heads, 16, 32, device=device, dtype=dtype, requires_grad=True) for heads in (4, 2, 2))
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    good = all(bool(x.isfinite().all()) for x in (out, *torch.autograd.grad(out, (q, k, v), torch.ones_like(out))))
    value = "torch's SDPA on padded sequences: forward and backward " + ("work" if good else "give no finite numbers")
    hint = "" if good else "pip install --force-reinstall torch"
    yield Finding("Attention", value, "ok" if good else "broken", hint, True)


def grouped_matmul() -> Iterator[Finding]:
    """Experts' products as model/experts.py asks for them, one expert without a row, against one product each."""
    import torch

    device, dtype = target()
    hint = "pip install --force-reinstall 'torch>=2.10'"
    if not hasattr(torch.nn.functional, "grouped_mm"):
        yield Finding("Grouped matmul", "torch.nn.functional.grouped_mm is not in this torch", "missing", hint, True)
        return
    counts, width, hidden = (5, 0, 8, 3), 16, 32
    x_nh = torch.randn(sum(counts), hidden, device=device, dtype=dtype, requires_grad=True)
    w_ewh = torch.randn(len(counts), width, hidden, device=device, dtype=dtype, requires_grad=True)
    gradient = torch.randn(sum(counts), width, device=device, dtype=dtype)
    ends = torch.tensor(counts, device=device).cumsum(0).to(torch.int32)
    out = torch.nn.functional.grouped_mm(x_nh, w_ewh.transpose(1, 2), offs=ends)
    grads = torch.autograd.grad(out, (x_nh, w_ewh), gradient)
    x, w = x_nh.detach().float().requires_grad_(), w_ewh.detach().float().requires_grad_()
    plain = torch.cat([rows @ w[e].T for e, rows in enumerate(x.split(counts))])
    wanted = torch.autograd.grad(plain, (x, w), gradient.float())
    pairs = ((out, plain), (grads[0], wanted[0]), (grads[1], wanted[1]))
    errors = [((a.float() - b).norm() / b.norm()).item() for a, b in pairs]
    good = all(error < 0.02 for error in errors)  # bf16 keeps 8 bits
    value = f"grouped_mm, forward and backward in {str(dtype).split('.')[-1]}: relative error {max(errors):.1e}"
    yield Finding("Grouped matmul", value, "ok" if good else "broken", "" if good else hint, True)


def triton() -> Iterator[Finding]:
    """The compiler of the GPU kernels, and what it needs itself: its launchers are Python extensions."""
    device, _ = target()
    present = installed("triton")
    version = (version_of("triton") or "of no known version") if present else "not installed"
    if device.type != "cuda":
        yield Finding("Triton", f"{version}; only GPUs need it", "unused")
        return
    choices = [os.environ.get("CC", ""), "gcc", "clang"]
    compiler = next(filter(None, (shutil.which(choice) for choice in choices if choice)), None)
    header = Path(sysconfig.get_config_var("INCLUDEPY") or "", "Python.h").is_file()
    lacks = {} if present else {"the package": "pip install triton"}
    lacks.update({} if compiler else {"a C compiler": "apt-get install gcc"})
    lacks.update({} if header else {"Python.h": "apt-get install python3-dev"})
    if lacks:
        yield Finding("Triton", f"{version}; lacks {' and '.join(lacks)}", "missing", " && ".join(lacks.values()), True)
    else:
        yield Finding("Triton", f"{version}, with {compiler}", "ok", needed=True)
