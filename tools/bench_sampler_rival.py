"""What bench_sampler.py compares with: transformers' two generators on a model of the same shape."""

from __future__ import annotations

import math
import sys
import time
from typing import TYPE_CHECKING, Any

import torch

from megatron_ring.config.model import ModelConfig

if TYPE_CHECKING:  # see bench_train_measure
    from tools.bench_train_rivals import transformers_model
else:
    from bench_train_rivals import transformers_model


RIVAL_TOKENS = 24  # its rate does not change with more, and it is slow
PAGE_TOKENS, STEP_TOKENS = 256, 1024  # of generate_batch's cache, and of its step, on a CPU


def cpu_bounds(batch: int, prompt_tokens: int) -> dict[str, int]:
    """What `generate_batch` may take on a CPU: tokens of its cache, half as many again as `batch` responses need at once (it
    keeps a part free), and tokens of a step, by which its attention mask grows: one for each response at least."""
    pages = batch * math.ceil((prompt_tokens + RIVAL_TOKENS) / PAGE_TOKENS)
    return {"cache_tokens": (pages * 3 // 2 + 1) * PAGE_TOKENS, "step_tokens": max(batch, STEP_TOKENS)}


def transformers_rates(shape: ModelConfig, batch: int, prompt_tokens: int, new_tokens: int) -> dict[str, dict[str, float]]:
    """Of `generate` and of `generate_batch` (continuous batching): tokens decoded per second, from the difference between
    responses of 2 and of RIVAL_TOKENS tokens, and tokens per second of whole responses of `new_tokens`, prefill included.
    One that fails is left out, and says why on stderr.

    On a CPU `generate_batch` would take most of the machine's memory for its cache: it gets the bounds of `cpu_bounds`, told
    beside its rates. On CUDA it chooses for itself."""
    import transformers

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.cuda.empty_cache()
    model = transformers_model(shape, device, torch.bfloat16 if device.type == "cuda" else torch.float32)
    model.eval()
    prompts = torch.randint(shape.vocab_size, (batch, prompt_tokens), generator=torch.Generator().manual_seed(0))
    settings: dict[str, Any] = {"do_sample": True, "temperature": 1.0, "top_k": 0, "eos_token_id": -1, "pad_token_id": 0}

    bounds: dict[str, int] = {} if device.type == "cuda" else cpu_bounds(batch, prompt_tokens)

    def generate(new: int) -> None:
        whole = prompts.to(device)
        model.generate(whole, attention_mask=torch.ones_like(whole), min_new_tokens=new, max_new_tokens=new, **settings)

    def generate_batch(new: int) -> None:
        chosen = transformers.GenerationConfig(max_new_tokens=new, **settings)
        batching = None
        if bounds:
            pages, step = bounds["cache_tokens"] // PAGE_TOKENS, bounds["step_tokens"]
            batching = transformers.ContinuousBatchingConfig(page_size=PAGE_TOKENS, num_blocks=pages, max_batch_tokens=step)
        model.generate_batch(
            inputs=prompts.tolist(), generation_config=chosen, continuous_batching_config=batching, progress_bar=False
        )

    def seconds(run: Any, new: int) -> float:
        began = time.perf_counter()
        run(new)
        return time.perf_counter() - began

    rates = {}
    for run in (generate, generate_batch):
        try:
            with torch.no_grad():
                run(2)
                short, long = seconds(run, 2), seconds(run, RIVAL_TOKENS)
        except Exception as error:  # whatever another library raises: the other generator still counts
            print(f"bench_sampler: transformers {run.__name__}: {type(error).__name__}: {error}", file=sys.stderr)
            continue
        turn = (long - short) / (RIVAL_TOKENS - 2)
        rates[run.__name__] = {
            "decode_tokens_per_second": batch / turn,
            "tokens_per_second": batch * new_tokens / (short + turn * (new_tokens - 2)),
            **(bounds if run is generate_batch else {}),
        }
    return rates
