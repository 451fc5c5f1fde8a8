"""Other libraries beside the sampler, for bench_sampler.py --compare: transformers, and vLLM on the same requests.

Each makes a model of the same shape with random weights.
"""

from __future__ import annotations

import importlib.util
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_ring.config.checks import require
from megatron_ring.config.model import ModelConfig

if TYPE_CHECKING:
    from megatron_ring.sampler.requests import GenerationRequest


def check_vllm() -> None:
    """Raise `UserError` where vLLM is not to be had, before anything is built."""
    there = importlib.util.find_spec("vllm") is not None
    require(there, "--compare vllm: vLLM is not installed (docs/performance.md tells how to bring it to a machine)")


def compare(
    library: str, shape: ModelConfig, requests: Sequence[GenerationRequest], rows: int, repeats: int, out: dict[str, Any]
) -> None:
    """Add the library's rates to `out`, and ours over them.

    Args:
        rows: sequences that vLLM decodes together, at most.
        repeats: runs of vLLM that count.
    """
    if TYPE_CHECKING:
        from tools.bench_sampler_rival import transformers_rates
    else:
        from bench_sampler_rival import transformers_rates

    if library == "transformers":
        rates = transformers_rates(shape, len(requests), len(requests[0].prompt_tokens), requests[0].max_new_tokens)
        out["transformers"] = rates
        for name in ("decode_tokens_per_second", "tokens_per_second") if rates else ():
            out[f"{name}_over_transformers"] = out["ring"][name] / max(rate[name] for rate in rates.values())
        return
    out["vllm"] = vllm_rates(shape, requests, rows, repeats)
    for name in ("ring", "fp8"):
        if name in out:
            rate = out[name]["tokens_per_second"] / out["vllm"]["tokens_per_second"]
            out[f"{name}_tokens_per_second_over_vllm"] = rate


def vllm_rates(shape: ModelConfig, requests: Sequence[GenerationRequest], rows: int, repeats: int) -> dict[str, Any]:
    """Tokens per second of whole runs over `requests` in bf16, the median of `repeats` after one that does not count.
    Prompts are kept for the other samples of a run, not from run to run. `rows`: sequences decoded together, at most."""
    import vllm

    with tempfile.TemporaryDirectory() as folder:
        _write_config(Path(folder), shape)
        longest = max(len(request.prompt_tokens) + request.max_new_tokens for request in requests)
        engine: Any = vllm.LLM(
            model=folder, load_format="dummy", skip_tokenizer_init=True, trust_remote_code=True, dtype="bfloat16",
            max_num_seqs=min(rows, len(requests)), max_model_len=longest + 1, enable_prefix_caching=True,
            gpu_memory_utilization=0.85,
        )  # fmt: skip
        prompts = [{"prompt_token_ids": list(request.prompt_tokens)} for request in requests]
        wanted = [
            vllm.SamplingParams(temperature=1.0, max_tokens=r.max_new_tokens, ignore_eos=True, detokenize=False, seed=r.seed)
            for r in requests
        ]
        tokens, seconds = sum(request.max_new_tokens for request in requests), []
        for _ in range(repeats + 1):
            engine.reset_prefix_cache()
            began = time.perf_counter()
            done = engine.generate(prompts, wanted, use_tqdm=False)
            seconds.append(time.perf_counter() - began)
            made = sum(len(request.outputs[0].token_ids) for request in done)
            require(made == tokens, f"--compare vllm: it made {made:,} tokens of {tokens:,}: its rate would say nothing")
    timed = seconds[1:]
    return {
        "tokens_per_second": tokens / statistics.median(timed), "seconds": statistics.median(timed),
        "spread": max(timed) / min(timed) - 1, "version": vllm.__version__,
    }  # fmt: skip


def _write_config(folder: Path, shape: ModelConfig) -> None:
    """A checkpoint folder without weights."""
    import torch

    from megatron_ring.checkpoint.hf_config import config_json
    from megatron_ring.checkpoint.hf_folder import write_code

    config = config_json(shape, torch.bfloat16, shape.vocab_size - 1, shape.vocab_size - 1)
    (folder / "config.json").write_text(json.dumps(config) + "\n", encoding="utf-8")
    write_code(folder)
