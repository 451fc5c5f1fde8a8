"""An exported folder's generation stops where our sampler stops: transformers' greedy search against ours, with several stop
tokens, from the same weights."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from megatron_ring.errors import UserError
from tests.checkpoint.published import random_tensors, write_folder
from tests.checkpoint.test_export_loads import SHAPE
from tests.other_transformers import in_each_release, in_transformers

EOS, STOPS, NEW = 5, (11, 23, 40), 40
SHAPE_HERE = replace(SHAPE, init_std=0.02)
GENERATE = """
import json, sys, torch
from transformers import AutoModelForCausalLM
folder, prompts, new = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
assert model.lm_head.weight.dtype == torch.float32
rows = []
for prompt in prompts:
    ids = torch.tensor([prompt])
    found = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False)
    rows.append(found[0, len(prompt):].tolist())
longest = max(map(len, prompts))
pad = model.generation_config.pad_token_id
padded = torch.tensor([[pad] * (longest - len(p)) + p for p in prompts])
mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
together = model.generate(padded, attention_mask=mask, max_new_tokens=new, do_sample=False)[:, longest:].tolist()
print(json.dumps([rows, together, model.generation_config.eos_token_id]))
"""


def ours(folder: str, prompts: list[list[int]], stops: tuple[int, ...]) -> list[tuple[list[int], str]]:
    """Tokens and end of each greedy response of our sampler."""
    from megatron_ring.checkpoint.hf_config import read_config
    from megatron_ring.config.sampling import SamplingConfig
    from megatron_ring.config.stage import ModelOptions
    from megatron_ring.run.stage import open_model
    from megatron_ring.sampler.requests import GenerationRequest
    from megatron_ring.sampler.sampler import Sampler

    stage = open_model(ModelOptions(precision="fp32"), read_config(Path(folder))[0], Path(folder))
    sampling = SamplingConfig(temperature=0.0, max_new_tokens=NEW, stop_token_ids=stops, max_batch=4)
    sampler = Sampler(stage.model, stage.context, sampling, EOS)
    done = sampler.generate([GenerationRequest(prompt, seed, NEW) for seed, prompt in enumerate(prompts)])
    return [(list(completion.tokens), completion.finish_reason) for completion in done]


def exported(tmp_path: Path, **options: Any) -> Path:
    from megatron_ring.checkpoint.convert import export_checkpoint, import_folder

    if not (tmp_path / "ckpt").exists():
        tensors = {name: 0.3 * tensor for name, tensor in random_tensors(SHAPE_HERE, seed=8).items()}
        import_folder(write_folder(tmp_path / "hf", SHAPE_HERE, tensors), tmp_path / "ckpt")
    out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
    export_checkpoint(tmp_path / "ckpt", out, **options)
    return out


@pytest.mark.slow
@in_each_release
def test_generation_stops_where_our_sampler_stops(tmp_path: Path, run_on: Any, release: str) -> None:
    out = exported(tmp_path, special_ids=(EOS, EOS), stop_ids=STOPS)
    prompts = [[(7 * i + 3 * j) % 61 for j in range(3 + i % 5)] for i in range(16)]
    (expected,) = run_on(1, ours, str(out), prompts, STOPS)
    said = in_transformers(release, GENERATE, str(out), json.dumps(prompts), str(NEW), folder=tmp_path)
    alone, together, ends = json.loads(said.splitlines()[-1])
    assert ends == [EOS, *STOPS]
    assert alone == [tokens for tokens, _ in expected]
    for tokens, padded in zip(alone, together, strict=True):
        assert padded[: len(tokens)] == tokens and set(padded[len(tokens) :]) <= {EOS}
    reasons = {reason for _, reason in expected}
    assert {"stop_token", "length"} <= reasons, expected  # the weights do stop, and do not always
    assert len({tokens[-1] for tokens, reason in expected if reason != "length"}) >= 2, expected


@pytest.mark.parametrize(
    ("generation", "options", "ends"),
    [
        (None, {"special_ids": (5, 5)}, 5),
        (None, {"special_ids": (5, 5), "stop_ids": (9, 5, 7)}, [5, 9, 7]),
        (None, {"stop_ids": (9,)}, [1, 9]),  # the eos of `like`'s config.json
        ({"eos_token_id": [3, 4]}, {}, [3, 4]),
        ({"eos_token_id": [3, 4]}, {"stop_ids": (4, 8)}, [3, 4, 8]),
        ({"eos_token_id": [3, 4]}, {"special_ids": (5, 6), "stop_ids": (8,)}, [5, 8]),
    ],
)
def test_what_ends_a_response_is_written(tmp_path: Path, generation: Any, options: dict[str, Any], ends: Any) -> None:
    like = write_folder(tmp_path / "like", SHAPE_HERE, {})
    if generation is not None:
        (like / "generation_config.json").write_text(json.dumps(generation))
    out = exported(tmp_path, like=like, **options)
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] == ends


@pytest.mark.parametrize(
    ("config", "generation", "options", "message"),
    [
        ({}, {"eos_token_id": [3, 61]}, {}, "eos_token_id 61 is outside the model's vocabulary of 61 tokens"),
        ({}, {"eos_token_id": 3, "bos_token_id": 99}, {}, "bos_token_id 99 is outside"),
        ({"eos_token_id": "</s>"}, {}, {}, 'eos_token_id is "</s>", not a token\'s id'),
        ({"eos_token_id": True}, {}, {}, "eos_token_id is true"),
        ({}, {}, {"stop_ids": (61,)}, "eos_token_id 61 is outside"),
        ({"score_function": "sigmoid"}, {}, {}, r"like/config\.json: score_function = 'sigmoid' is not supported"),
        ({"attention_dropout": 0.1}, {}, {}, r"attention_dropout = 0\.1 is not supported"),
    ],
)
def test_what_cannot_be_exported(
    tmp_path: Path, config: dict[str, Any], generation: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    """The exported folder would say what the model does not do, or cannot draw."""
    like = write_folder(tmp_path / "like", SHAPE_HERE, {}, **config)
    if generation:
        (like / "generation_config.json").write_text(json.dumps(generation))
    with pytest.raises(UserError, match=message):
        exported(tmp_path, like=like, **options)
    assert not list(tmp_path.glob("out*"))
