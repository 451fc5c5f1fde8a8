"""An exported folder loads in transformers as it is written, and computes what training computes."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_ring.config.model import ModelConfig, RopeScaling
from megatron_ring.errors import UserError
from tests.checkpoint.published import random_tensors, write_folder
from tests.other_transformers import in_each_release, in_transformers

SHAPE = ModelConfig(
    num_layers=3, hidden_size=32, num_attention_heads=4, num_key_value_heads=2, head_dim=8, vocab_size=61, num_experts=6,
    experts_per_token=2, expert_width=12, num_shared_experts=2, dense_width=24, max_positions=256, init_std=0.2,
)  # fmt: skip
SHAPES = {
    "plain": SHAPE,
    "dense first, biases, yarn": replace(
        SHAPE, first_dense_layers=1, qkv_bias=True, rope_scaling=RopeScaling("yarn", 4.0, 64), num_shared_experts=0
    ),
    "expert bias": replace(SHAPE, expert_bias=True, first_dense_layers=1),
    "linear": replace(SHAPE, rope_scaling=RopeScaling("linear", 2.0)),
}
# Run where transformers loads the folder, which may be another release than that of the tests.
LOAD = """
import json, sys, torch
from transformers import AutoConfig, AutoModelForCausalLM
import transformers
folder, ids, mask, out = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3]), sys.argv[4]
config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
assert type(model).__name__ == "BailingMoeForCausalLM", type(model)
ids, mask = torch.tensor(ids), torch.tensor(mask)
with torch.no_grad():
    logits = model(ids).logits
    padded = model(ids, attention_mask=mask).logits
    prompt, attend = ids[:, :8], mask[:, :8]
    kwargs = dict(max_new_tokens=12, do_sample=False, attention_mask=attend)
    cached, plain = model.generate(prompt, **kwargs), model.generate(prompt, use_cache=False, **kwargs)
    loss = model(ids, labels=ids).loss
torch.save({"logits": logits, "padded": padded, "cached": cached, "plain": plain, "loss": loss,
            "biases": {name: buffer for name, buffer in model.named_parameters() if name.endswith("expert_bias")},
            "dtype": str(model.lm_head.weight.dtype), "version": transformers.__version__}, out)
"""


def load(release: str, folder: Path, ids: torch.Tensor, mask: torch.Tensor, out: Path) -> dict[str, Any]:
    """What a release of transformers makes of a folder."""
    texts = (str(folder), json.dumps(ids.tolist()), json.dumps(mask.tolist()), str(out))
    in_transformers(release, LOAD, *texts, folder=out.parent)
    return torch.load(out)


def our_logits(folder: str, ids: list[list[int]]) -> torch.Tensor:
    """Logits of each row as training computes them."""
    from megatron_ring.checkpoint.hf_config import read_config
    from megatron_ring.config.stage import ModelOptions
    from megatron_ring.model.layout import PackedLayout
    from megatron_ring.model.ring_model import forward_all_stages
    from megatron_ring.run.stage import open_model

    stage = open_model(ModelOptions(precision="fp32"), read_config(Path(folder))[0], Path(folder))
    stage.model.eval()
    rows = []
    with torch.no_grad():
        for row in ids:
            tokens, positions = torch.tensor(row), torch.arange(len(row))
            rows.append(forward_all_stages(stage.model, tokens, PackedLayout(positions, [len(row)])))
    return torch.stack(rows)


@pytest.mark.slow
@in_each_release
@pytest.mark.parametrize(
    ("name", "norm_head"), [("plain", True), ("dense first, biases, yarn", False), ("linear", False), ("expert bias", False)]
)
def test_it_loads_and_computes_the_same(tmp_path: Path, run_on: Any, name: str, norm_head: bool, release: str) -> None:
    from megatron_ring.checkpoint.convert import export_checkpoint, import_folder

    shape = SHAPES[name]
    tensors = {key: 0.2 * tensor for key, tensor in random_tensors(shape, seed=3).items()}
    hf = write_folder(tmp_path / "hf", shape, tensors, norm_head=norm_head)
    import_folder(hf, tmp_path / "ckpt")
    export_checkpoint(tmp_path / "ckpt", tmp_path / "out", special_ids=(60, 60))
    ids = torch.randint(0, 60, (2, 24), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, :5] = 0
    found = load(release, tmp_path / "out", ids, mask, tmp_path / "found.pt")
    expected = run_on(1, our_logits, str(tmp_path / "out"), ids.tolist())[0]
    torch.testing.assert_close(found["logits"], expected, atol=2e-5, rtol=0)
    alone = run_on(1, our_logits, str(tmp_path / "out"), [ids[1, 5:].tolist()])[0]
    torch.testing.assert_close(found["padded"][1:, 5:], alone, atol=2e-5, rtol=0)
    torch.testing.assert_close(found["padded"][0], expected[0], atol=2e-5, rtol=0)
    assert torch.equal(found["cached"], found["plain"]) and found["cached"].shape[1] > 8
    assert found["biases"].keys() == {name for name in tensors if name.endswith("expert_bias")}
    assert all(torch.equal(bias, tensors[name]) for name, bias in found["biases"].items())
    flat = torch.nn.functional.cross_entropy(expected[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    torch.testing.assert_close(found["loss"], flat, atol=2e-5, rtol=0)


def test_expert_biases_stay_fp32(tmp_path: Path) -> None:
    """Whatever the weights become, in both directions; and are not asked for where the configuration has none."""
    from safetensors.torch import load_file

    from megatron_ring.checkpoint.convert import bytes_to_export, export_checkpoint, import_folder

    shape = SHAPES["expert bias"]
    tensors = random_tensors(shape)
    hf, name = write_folder(tmp_path / "hf", shape, tensors), "model.layers.1.mlp.gate.expert_bias"
    import_folder(hf, tmp_path / "ckpt", torch.bfloat16)
    for dtype in (torch.bfloat16, None):
        out = tmp_path / f"out {dtype}"
        export_checkpoint(tmp_path / "ckpt", out, dtype=dtype)
        found = load_file(out / "model.safetensors")
        assert found[name].dtype == torch.float32 and torch.equal(found[name], tensors[name])
        assert {tensor.dtype for key, tensor in found.items() if key not in tensors or "bias" not in key} == {torch.bfloat16}
        assert bytes_to_export(tmp_path / "ckpt", dtype) == sum(tensor.nbytes for tensor in found.values())
    plain = write_folder(tmp_path / "plain", replace(shape, expert_bias=False), tensors)
    with pytest.raises(UserError, match=f"{re.escape(name)} is unexpected"):
        import_folder(plain, tmp_path / "none")
    lacking = write_folder(tmp_path / "lacking", shape, {key: one for key, one in tensors.items() if key != name})
    with pytest.raises(UserError, match=f"{re.escape(name)} is missing"):
        import_folder(lacking, tmp_path / "none")


@pytest.mark.slow
@in_each_release
def test_the_published_model_loads(tmp_path: Path, golden: Path, release: str) -> None:
    from safetensors.torch import load_file

    from megatron_ring.checkpoint.convert import export_checkpoint, import_folder

    expected = load_file(golden / "bailing_moe_tiny/expected.safetensors")
    import_folder(golden / "bailing_moe_tiny", tmp_path / "ckpt")
    export_checkpoint(tmp_path / "ckpt", tmp_path / "out", like=golden / "bailing_moe_tiny")
    ids = expected["input_ids"]
    found = load(release, tmp_path / "out", ids, torch.ones_like(ids), tmp_path / "found.pt")
    torch.testing.assert_close(found["logits"], expected["logits"], atol=2e-5, rtol=0)


@pytest.mark.slow
@in_each_release
def test_the_dtype_is_the_one_asked_for(tmp_path: Path, release: str) -> None:
    from megatron_ring.checkpoint.convert import export_checkpoint, import_folder

    hf = write_folder(
        tmp_path / "hf", SHAPE, random_tensors(SHAPE, dtype=torch.bfloat16), dtype="bfloat16", torch_dtype="bfloat16"
    )
    import_folder(hf, tmp_path / "ckpt")
    ids = torch.zeros(1, 10, dtype=torch.long)
    for name, dtype in (("kept", None), ("wide", torch.float32)):
        export_checkpoint(tmp_path / "ckpt", tmp_path / name, like=hf, dtype=dtype, special_ids=(60, 60))
        config = json.loads((tmp_path / name / "config.json").read_text())
        assert config["dtype"] == config["torch_dtype"] == ("bfloat16" if dtype is None else "float32")
        if dtype is not None:  # the default of releases before 5 is fp32 whatever the file says
            found = load(release, tmp_path / name, ids, torch.ones_like(ids), tmp_path / "found.pt")
            assert found["dtype"] == "torch.float32"


def exported(tmp_path: Path, **options: Any) -> Path:
    from megatron_ring.checkpoint.convert import export_checkpoint, import_folder

    if not (tmp_path / "ckpt").exists():
        import_folder(write_folder(tmp_path / "plain", SHAPE, random_tensors(SHAPE)), tmp_path / "ckpt")
    out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
    export_checkpoint(tmp_path / "ckpt", out, **options)
    return out


def test_the_tokenizer_is_that_of_one_folder(tmp_path: Path) -> None:
    like = write_folder(tmp_path / "like", SHAPE, random_tensors(SHAPE), eos_token_id=5, pad_token_id=6, extra=None)
    names = ("tokenizer.json", "vocab.json", "merges.txt", "special_tokens_map.json", "chat_template.jinja")
    for name in (*names, "LICENSE", "tokenization_old.py", "modeling_bailing_moe.py"):
        (like / name).write_text(f"like {name}")
    (like / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 7], "bos_token_id": 1, "top_p": 0.9}))
    (like / "additional_chat_templates").mkdir()
    (like / "additional_chat_templates/rag.jinja").write_text("like")
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "README.md", "notes.txt"):
        (tokenizer / name).write_text(f"own {name}")
    out = exported(tmp_path, like=like, tokenizer=tokenizer, special_ids=(9, 8))
    files = {path.name for path in out.iterdir()}
    assert files == {"tokenizer.json", "tokenizer_config.json", "LICENSE", "config.json", "generation_config.json",
                     "modeling_bailing_moe.py", "configuration_bailing_moe.py", "model.safetensors"}  # fmt: skip
    assert (out / "tokenizer.json").read_text() == "own tokenizer.json"
    assert "class BailingMoeForCausalLM" in (out / "modeling_bailing_moe.py").read_text()
    config, generation = (json.loads((out / name).read_text()) for name in ("config.json", "generation_config.json"))
    assert (config["eos_token_id"], config["pad_token_id"]) == (9, 8)
    assert generation == {"eos_token_id": 9, "pad_token_id": 8, "top_p": 0.9}
    out = exported(tmp_path, like=like)
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] == [5, 7]
    assert (out / "tokenizer.json").read_text() == "like tokenizer.json" and (
        out / "additional_chat_templates/rag.jinja"
    ).exists()


def test_without_a_tokenizer_there_are_no_special_tokens(tmp_path: Path) -> None:
    out = exported(tmp_path)
    config = json.loads((out / "config.json").read_text())
    assert config["eos_token_id"] is None and config["pad_token_id"] is None
    assert not (out / "generation_config.json").exists()


@pytest.mark.parametrize("eos", [61, -1, [3, 61]])
def test_special_tokens_outside_the_vocabulary(tmp_path: Path, eos: Any) -> None:
    with pytest.raises(UserError, match=r"eos_token_id -?\d+ is outside the model's vocabulary of 61 tokens"):
        exported(tmp_path, special_ids=(eos, 3))


FEATURES: dict[str, Any] = {
    "score_function": "sigmoid", "routed_scaling_factor": 2.5, "partial_rotary_factor": 0.5, "n_group": 8, "topk_group": 4,
    "moe_router_enable_expert_bias": 1, "embedding_multiplier": 12.0, "rope_interleave": True, "use_qk_norm": True,
    "attention_dropout": 0.1, "num_nextn_predict_layers": 1, "rope_theta": None, "hidden_size": 32.5, "num_experts": True,
    "rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}, "rms_norm_eps": "1e-6", "rope_theta ": 3,
    "sandwich_norm": True, "moe_shared_expert_intermediate_size": 7, "layer_types": ["sliding_attention"],
    "norm_topk_prob": 1, "use_rmsnorm": False,
}  # fmt: skip


@pytest.mark.parametrize("name", FEATURES)
def test_features_that_the_model_lacks_are_refused_by_name(tmp_path: Path, name: str) -> None:
    from megatron_ring.checkpoint.hf_config import read_config

    folder = write_folder(tmp_path / "hf", SHAPE, {"a": torch.zeros(1)}, **{name: FEATURES[name]})
    with pytest.raises(UserError, match=r"config\.json: (rope_parameters\.)?[a-z_ ]+ (=|is) ") as error:
        read_config(folder)
    assert name in str(error.value)


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}


@pytest.mark.parametrize(
    ("given", "scaling"),
    [
        ({"rope_parameters": {"rope_theta": 6e5, **YARN}}, RopeScaling("yarn", 4.0, 64)),
        ({"rope_parameters": {"rope_theta": 6e5, **YARN}, "rope_scaling": None}, RopeScaling("yarn", 4.0, 64)),
        ({"rope_parameters": {"rope_theta": 6e5, **YARN}, "rope_scaling": YARN}, RopeScaling("yarn", 4.0, 64)),
        ({"rope_scaling": {**YARN, "type": "yarn"}}, RopeScaling("yarn", 4.0, 64)),
        ({"rope_parameters": {"rope_theta": 1e6}}, "rope_theta is 600000.0, and 1000000.0 in rope_parameters"),
        ({"rope_parameters": YARN, "rope_scaling": {**YARN, "factor": 2.0}}, "rope_scaling is .*, and another one"),
        ({"rope_parameters": {"rope_type": "default"}, "rope_scaling": YARN}, "rope_scaling is .*, and another one"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "type 'llama3' is not supported"),
        ({"rope_parameters": "yarn"}, 'rope_parameters is "yarn", not an object'),
    ],
)
def test_both_ways_to_write_rope(tmp_path: Path, given: dict[str, Any], scaling: Any) -> None:
    from megatron_ring.checkpoint.hf_config import config_json, parse_config

    config = {**config_json(SHAPE, torch.float32, 1, 0), **given}
    if isinstance(scaling, str):
        with pytest.raises(UserError, match=scaling):
            parse_config(config, tmp_path / "config.json")
    else:
        assert parse_config(config, tmp_path / "config.json")[0] == replace(SHAPE, rope_scaling=scaling)


ODD: tuple[Any, ...] = (None, True, False, 0, 1, -1, 2.5, 1e400, "1", "", [], [1], {}, {"a": 1}, {"type": "yarn"},
                       {"rope_type": "yarn", "factor": "4"}, {"type": "linear", "factor": True}, {"type": [], "factor": 2},
                       {"type": "yarn", "factor": 2.0, "original_max_position_embeddings": "8"})  # fmt: skip


def test_any_value_of_any_setting_is_read_or_refused(tmp_path: Path) -> None:
    """In one line that names it: no other failure, and what is read can be written again."""
    from megatron_ring.checkpoint.hf_config import DEFAULTS, FIELDS, config_json, parse_config
    from megatron_ring.checkpoint.hf_settings import NEUTRAL, ONLY

    path, whole = tmp_path / "config.json", config_json(SHAPE, torch.float32, 1, 0)
    names = {*FIELDS, *DEFAULTS, *NEUTRAL, *ONLY, "moe_shared_expert_intermediate_size", "new_feature", "model_type"}
    read = 0
    for name in sorted(names):
        for value in ODD:
            try:
                shape, norm_head = parse_config({**whole, name: value}, path)
            except UserError as error:
                assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
                continue
            read += 1
            assert parse_config(config_json(shape, torch.float32, 1, 0), path) == (shape, False), (name, value, norm_head)
    assert read > 500
    for name in FIELDS:
        without = {key: value for key, value in whole.items() if key != name}
        if name not in DEFAULTS and name != "head_dim":
            with pytest.raises(UserError, match=f"lacks {name}"):
                parse_config(without, path)


def test_settings_that_change_nothing(tmp_path: Path, golden: Path) -> None:
    from megatron_ring.checkpoint.hf_config import read_config

    neutral = {"score_function": "softmax", "routed_scaling_factor": 1.0, "partial_rotary_factor": 1, "n_group": 1,
               "future": None, "moe_shared_expert_intermediate_size": 24, "output_router_logits": True, "new_feature": False,
               "transformers_version": "6.0", "rope_parameters": {"rope_theta": 6e5, "rope_type": "default"}}  # fmt: skip
    folder = write_folder(tmp_path / "hf", SHAPE, {"a": torch.zeros(1)}, **neutral)
    assert read_config(folder)[0] == SHAPE
    assert read_config(golden / "bailing_moe_tiny")[0].num_experts == 8
    shutil.rmtree(folder)
