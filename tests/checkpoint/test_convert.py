"""Hugging Face folder -> checkpoint -> folder: the identity, or an error that names the tensor and writes nothing."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from megatron_ring.config.model import ModelConfig, RopeScaling
from megatron_ring.config.parallel import ParallelConfig
from megatron_ring.errors import UserError
from tests.checkpoint.published import random_tensors, same, shapes, write_folder
from tests.layouts import LAYOUTS

TINY = ModelConfig(
    num_layers=3, hidden_size=8, num_attention_heads=4, num_key_value_heads=2, head_dim=4, vocab_size=11, num_experts=4,
    experts_per_token=2, expert_width=6, num_shared_experts=2, dense_width=10, first_dense_layers=1, qkv_bias=True,
    rope_scaling=RopeScaling("yarn", 4.0, 512),
)  # fmt: skip


def all_tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


@settings(max_examples=25, deadline=None)
@given(shapes(), st.sampled_from([1, 2, 3]), st.sampled_from([torch.float32, torch.bfloat16]), st.sampled_from([200, 10**9]))
def test_the_round_trip_is_the_identity(shape: ModelConfig, files: int, dtype: torch.dtype, shard_bytes: int) -> None:
    from megatron_ring.checkpoint.convert import export_checkpoint, import_folder
    from megatron_ring.checkpoint.hf_config import read_config

    with tempfile.TemporaryDirectory() as place:
        tensors = random_tensors(shape, dtype=dtype)
        hf = write_folder(Path(place) / "hf", shape, tensors, files)
        assert import_folder(hf, Path(place) / "ckpt") == shape
        export_checkpoint(Path(place) / "ckpt", Path(place) / "back", shard_bytes=shard_bytes)
        assert same(all_tensors(Path(place) / "back"), tensors)
        assert read_config(Path(place) / "back") == (shape, False)
        if shard_bytes == 200:  # the index says where each tensor is
            index = json.loads((Path(place) / "back" / "model.safetensors.index.json").read_text())
            for name, file in index["weight_map"].items():
                assert torch.equal(load_file(Path(place) / "back" / file)[name], tensors[name])


Damage = Callable[[dict[str, torch.Tensor], str], str]


def remove(tensors: dict[str, torch.Tensor], name: str) -> str:
    del tensors[name]
    return f"{name} is missing"


def rename(tensors: dict[str, torch.Tensor], name: str) -> str:
    tensors[f"{name}x"] = tensors.pop(name)
    return f"{name}x is unexpected"


def reshape(tensors: dict[str, torch.Tensor], name: str) -> str:
    tensors[name] = torch.zeros(*tensors[name].shape[:-1], tensors[name].shape[-1] + 1)
    return f"{name} has shape"


def half(tensors: dict[str, torch.Tensor], name: str) -> str:
    tensors[name] = tensors[name].half()
    return f"{name} is float16"


def infinite(tensors: dict[str, torch.Tensor], name: str) -> str:
    tensors[name].view(-1)[-1] = float("inf")
    return f"{name} holds values that are not finite"


def not_a_number(tensors: dict[str, torch.Tensor], name: str) -> str:
    tensors[name].view(-1)[0] = float("nan")
    return f"{name} holds values that are not finite"


def refused(hf: Path, out: Path) -> str:
    from megatron_ring.checkpoint.convert import import_folder

    with pytest.raises(UserError) as error:
        import_folder(hf, out)
    assert sorted(path.name for path in out.parent.iterdir()) == [hf.name], "something was written"
    return str(error.value)


@settings(max_examples=40, deadline=None)
@given(shapes(), st.sampled_from([remove, rename, reshape, half, infinite, not_a_number]), st.data())
def test_any_damaged_tensor_is_named_and_nothing_is_written(shape: ModelConfig, damage: Damage, data: Any) -> None:
    tensors = random_tensors(shape)
    said = damage(tensors, data.draw(st.sampled_from(sorted(tensors))))
    with tempfile.TemporaryDirectory() as place:
        assert said in refused(write_folder(Path(place) / "hf", shape, tensors, 2), Path(place) / "ckpt")


@settings(max_examples=20, deadline=None)
@given(shapes(), st.data())
def test_a_tensor_in_two_files_is_named(shape: ModelConfig, data: Any) -> None:
    tensors = random_tensors(shape)
    name = data.draw(st.sampled_from(sorted(tensors)))
    with tempfile.TemporaryDirectory() as place:
        hf = write_folder(Path(place) / "hf", shape, tensors, 3)
        for path in hf.glob("*.safetensors"):
            save_file({**load_file(path), name: tensors[name]}, path)
        assert f"{name} is duplicated" in refused(hf, Path(place) / "ckpt")


def test_several_problems_are_all_named(tmp_path: Path) -> None:
    tensors = random_tensors(TINY)
    names = [f"model.layers.2.mlp.experts.{i}.up_proj.weight" for i in range(4)]
    remove(tensors, names[0])
    reshape(tensors, names[1])
    message = refused(write_folder(tmp_path / "hf", TINY, tensors), tmp_path / "ckpt")
    assert names[0] in message and names[1] in message
    tensors = random_tensors(TINY)
    infinite(tensors, names[2])
    not_a_number(tensors, names[3])
    message = refused(write_folder(tmp_path / "two" / "hf", TINY, tensors), tmp_path / "two" / "ckpt")
    assert names[2] in message and names[3] in message


def test_a_damaged_folder_is_refused_with_the_reason(tmp_path: Path) -> None:
    def fresh(name: str, files: int = 1, **config: Any) -> Path:
        return write_folder(tmp_path / name / "hf", TINY, random_tensors(TINY), files, **config)

    def message(hf: Path) -> str:
        return refused(hf, hf.parent / "ckpt")

    hf = fresh("truncated")
    file = hf / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-3])
    assert "model.safetensors" in message(hf) and "truncated" in message(hf)
    hf = fresh("twice")
    raw = (hf / "model.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = raw[8 : 8 + length].decode().rstrip()
    entry = header[header.index('"lm_head.weight"') :]
    header = header[:-1] + "," + entry[: entry.index("}") + 1] + "}"
    (hf / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header.encode() + raw[8 + length :])
    assert "lm_head.weight is there twice" in message(hf)
    hf = fresh("index", 2)
    index = hf / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    moved = {**weight_map, "lm_head.weight": next(f for f in weight_map.values() if f != weight_map["lm_head.weight"])}
    index.write_text(json.dumps({"weight_map": moved}))
    assert "lm_head.weight is in" in message(hf) and "the index says" in message(hf)
    (hf / moved["lm_head.weight"]).unlink()
    assert f"{moved['lm_head.weight']} is missing" in message(hf)
    hf = fresh("pickled")
    (hf / "model.safetensors").rename(hf / "pytorch_model.bin")
    assert "pytorch_model.bin" in message(hf) and "can run any code" in message(hf)
    unsupported = {"use_bias": True, "hidden_act": "gelu", "norm_topk_prob": False, "quantization_config": {"a": 1},
                   "rope_scaling": {"type": "dynamic", "factor": 2.0}}  # fmt: skip
    for name, value in unsupported.items():
        assert name in message(fresh(f"config_{name}", **{name: value}))
    hf = fresh("other")
    config = json.loads((hf / "config.json").read_text())
    (hf / "config.json").write_text(json.dumps({**config, "model_type": "llama"}))
    assert "'llama'" in message(hf)
    del config["num_experts"]
    (hf / "config.json").write_text(json.dumps(config))
    assert "lacks num_experts" in message(hf)


def test_the_exported_folder_takes_after_like(tmp_path: Path) -> None:
    from megatron_ring.checkpoint.convert import export_checkpoint, import_folder

    extras = {"auto_map": {"AutoModelForCausalLM": "modeling_bailing_moe.BailingMoeModelForCausalLM"}, "eos_token_id": 7,
              "norm_head": True, "architectures": ["Other"]}  # fmt: skip
    hf = write_folder(tmp_path / "hf", TINY, random_tensors(TINY), **extras)
    for name in ("tokenizer.json", "modeling_bailing_moe.py", "chat_template.jinja"):
        (hf / name).write_text(f"{name} of like")
    generation = {"eos_token_id": [7, 8], "top_p": 0.9}
    (hf / "generation_config.json").write_text(json.dumps(generation))
    (hf / "pytorch_model.bin").write_text("not copied")
    import_folder(hf, tmp_path / "ckpt")
    export_checkpoint(tmp_path / "ckpt", tmp_path / "back", like=hf, dtype=torch.bfloat16)
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    assert (config["eos_token_id"], config["architectures"]) == (7, ["BailingMoeForCausalLM"])
    assert config["auto_map"]["AutoModelForCausalLM"] == "modeling_bailing_moe.BailingMoeForCausalLM"  # code of ours
    assert config["norm_head"] is False and config["torch_dtype"] == "bfloat16"
    assert sorted(path.name for path in (tmp_path / "back").iterdir()) == sorted(
        ["config.json", "model.safetensors", "tokenizer.json", "modeling_bailing_moe.py", "chat_template.jinja",
         "configuration_bailing_moe.py", "generation_config.json"])  # fmt: skip
    assert json.loads((tmp_path / "back" / "generation_config.json").read_text()) == generation
    with pytest.raises(UserError, match="exists already"):
        export_checkpoint(tmp_path / "ckpt", tmp_path / "back")


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    """No file may grow beyond a limit: writes fail as on a full disk."""
    import resource
    import signal

    from megatron_ring.checkpoint.convert import export_checkpoint, import_folder

    hf = write_folder(tmp_path / "hf", TINY, random_tensors(TINY))
    import_folder(hf, tmp_path / "ckpt")
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, hard))
    try:
        with pytest.raises(UserError, match="nothing was written"):
            import_folder(hf, tmp_path / "again")
        with pytest.raises(UserError, match="nothing was written"):
            export_checkpoint(tmp_path / "ckpt", tmp_path / "back")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, previous)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ckpt", "hf"]


def through(parallel: ParallelConfig, source: Path, out: Path, optimizer: bool) -> None:
    """Load a folder or checkpoint under a layout and save it as a checkpoint."""
    from megatron_ring.checkpoint.saving import save_checkpoint
    from megatron_ring.config.optimizer import OptimizerConfig
    from megatron_ring.config.stage import ModelOptions
    from megatron_ring.run.stage import open_model, resolve_shape
    from megatron_ring.training.trainer import Trainer

    stage = open_model(ModelOptions(parallel=parallel, precision="fp32"), resolve_shape(None, source), source)
    trainer = Trainer(stage.model, stage.context, OptimizerConfig()) if optimizer else None
    save_checkpoint(out, 1, stage.model, trainer.optimizer if trainer else None, stage.context, {})


MORE = {"tp2_pp2": (4, ParallelConfig(tensor=2, pipeline=2)), "pp2": (2, ParallelConfig(pipeline=2))}


@pytest.mark.distributed
@pytest.mark.parametrize("layout", [*(name for name in LAYOUTS if name not in MORE), *MORE])
def test_every_layout_gives_back_the_same_tensors(run_on, tmp_path: Path, layout: str) -> None:
    """A vocabulary of 11 under TP=2 is padded, 3 layers under PP=2 are uneven; the first layer is dense."""
    from megatron_ring.checkpoint.convert import export_checkpoint, import_folder

    tensors = random_tensors(TINY)
    hf = write_folder(tmp_path / "hf", TINY, tensors, 2)
    import_folder(hf, tmp_path / "ckpt")
    processes, parallel = (LAYOUTS | MORE)[layout]
    for name, source, optimizer in (("from_hf", hf, True), ("from_ckpt", tmp_path / "ckpt", False)):
        run_on(processes, through, parallel, source, tmp_path / name, optimizer)
        export_checkpoint(tmp_path / name / "step_1", tmp_path / f"{name}_hf")
        assert same(all_tensors(tmp_path / f"{name}_hf"), tensors), name


@pytest.mark.slow
@pytest.mark.distributed
def test_saved_under_one_layout_loaded_and_saved_under_another(run_on, tmp_path: Path) -> None:
    from megatron_ring.checkpoint.convert import export_checkpoint

    tensors = random_tensors(TINY)
    source = write_folder(tmp_path / "hf", TINY, tensors)
    for i, layout in enumerate(["ep2", "tp2", "tp2_pp2", "tp2_ep2", "pp2", "one"]):
        processes, parallel = (LAYOUTS | MORE)[layout]
        run_on(processes, through, parallel, source, tmp_path / str(i), i % 2 == 0)
        source = tmp_path / str(i) / "step_1"
        export_checkpoint(source, tmp_path / f"hf_{layout}")
        assert same(all_tensors(tmp_path / f"hf_{layout}"), tensors), layout
