"""Upcycling: the MoE that comes out computes what the dense model did, and a mistake ends in one line."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from megatron_ring.data.records import Message, SFTRecord
from megatron_ring.data.tokenizer import RingTokenizer
from megatron_ring.errors import run_main
from tools import upcycle

ROOT = Path(__file__).resolve().parents[2]
CHATML = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEXTS = ["x  12 + 345 = 357\n\n", "naïve café, 中文 and Ω₂ 😀!", "def f(n):\n\treturn  n ** 2  # don't", " 1 2  3   4\r\n"]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def bpe() -> Tokenizer:
    """A byte-level BPE of the kind that SmolLM2 has: every digit alone."""
    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    special = [AddedToken(token, special=True, normalized=False) for token in SPECIAL]
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=special, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())  # fmt: skip
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    return tokenizer


def llama(tied: bool = False, **settings: Any) -> LlamaForCausalLM:
    """A random Llama with weights, norms too, large enough for every part to move the logits."""
    sizes = {"vocab_size": 320, "hidden_size": 48, "intermediate_size": 36, "num_hidden_layers": 2, "rms_norm_eps": 1e-5,
             "num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 64}  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**{**sizes, "tie_word_embeddings": tied, **settings})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * (0.2 if parameter.dim() == 2 else 0.1) + (parameter.dim() == 1))
    return model


def save_folder(model: LlamaForCausalLM, folder: Path, **flags: Any) -> Path:
    model.save_pretrained(folder, **flags)
    fast = PreTrainedTokenizerFast(tokenizer_object=bpe(), eos_token="<|im_end|>", pad_token="<|im_end|>")
    fast.chat_template = CHATML
    fast.save_pretrained(folder)
    return folder


def save_gguf(model: LlamaForCausalLM, path: Path, change: Callable[[Any], None] = lambda writer: None) -> Path:
    """The model as llama.cpp's converter would write it in F32: query and key rows permuted, a tied head left out."""
    gguf = pytest.importorskip("gguf", reason="the gguf package is not installed")
    config, tokenizer = model.config, bpe()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10_000.0)
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in SPECIAL else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]])
    writer.add_eos_token_id(SPECIAL.index("<|im_end|>"))
    writer.add_pad_token_id(SPECIAL.index("<|im_end|>"))
    writer.add_chat_template(CHATML)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        for part, heads in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
            if part in name:
                weight = weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), weight.contiguous().numpy())
    change(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["upcycle.py", *map(str, arguments)])
    upcycle.main()


@torch.no_grad()
def bailing_moe_logits(folder: Path, tokens_t: torch.Tensor) -> torch.Tensor:
    """Logits [T, vocab] of a published folder for tokens [T], written down from the published model's definition."""
    config = json.loads((folder / "config.json").read_text())
    weights = {name: w.float() for file in folder.glob("*.safetensors") for name, w in load_file(file).items()}
    heads, groups, dim = config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]
    frequencies = config["rope_theta"] ** (-torch.arange(0, dim, 2) / dim)
    angles_td = torch.outer(torch.arange(len(tokens_t)), torch.cat([frequencies, frequencies]))

    def norm(x_th: torch.Tensor, name: str) -> torch.Tensor:
        return x_th * (x_th.square().mean(-1, keepdim=True) + config["rms_norm_eps"]).rsqrt() * weights[name]

    def rotate(x_ntd: torch.Tensor) -> torch.Tensor:
        first, second = x_ntd.chunk(2, dim=-1)
        return x_ntd * angles_td.cos() + torch.cat([-second, first], -1) * angles_td.sin()

    def mlp(x_th: torch.Tensor, name: str) -> torch.Tensor:
        gate, up, down = (weights[f"{name}.{part}_proj.weight"] for part in ("gate", "up", "down"))
        return (F.silu(x_th @ gate.T) * (x_th @ up.T)) @ down.T

    x_th = weights["model.word_embeddings.weight"][tokens_t]
    for n in range(config["num_hidden_layers"]):
        layer = f"model.layers.{n}"
        qkv = norm(x_th, f"{layer}.input_layernorm.weight") @ weights[f"{layer}.attention.query_key_value.weight"].T
        q, k, v = qkv.view(len(tokens_t), -1, dim).transpose(0, 1).split([heads, groups, groups])
        k, v = (part.repeat_interleave(heads // groups, 0) for part in (rotate(k), v))
        scores = rotate(q) @ k.transpose(1, 2) / dim**0.5
        scores = scores.masked_fill(torch.ones_like(scores[0]).triu(1).bool(), -torch.inf)
        attended = (scores.softmax(-1) @ v).transpose(0, 1).flatten(1)
        x_th = x_th + attended @ weights[f"{layer}.attention.dense.weight"].T
        h_th = norm(x_th, f"{layer}.post_attention_layernorm.weight")
        probabilities = (h_th @ weights[f"{layer}.mlp.gate.weight"].T).softmax(-1)
        bias = weights.get(f"{layer}.mlp.gate.expert_bias", torch.zeros(()))
        experts_tk = (probabilities + bias).topk(config["num_experts_per_tok"]).indices
        top_tk = probabilities.gather(1, experts_tk)
        top_tk = top_tk / top_tk.sum(-1, keepdim=True)
        y_th = mlp(h_th, f"{layer}.mlp.shared_experts") if config["num_shared_experts"] else torch.zeros_like(h_th)
        for e in range(config["num_experts"]):
            weight_t = (top_tk * (experts_tk == e)).sum(-1, keepdim=True)
            y_th = y_th + weight_t * mlp(h_th, f"{layer}.mlp.experts.{e}")
        x_th = x_th + y_th
    return norm(x_th, "model.norm.weight") @ weights["lm_head.weight"].T


def assert_same_function(folder: Path, model: LlamaForCausalLM, tolerance: float = 1e-4) -> None:
    tokens_t = torch.randint(0, 320, (40,), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected = model(tokens_t[None]).logits[0]
    assert expected.std() > 0.5  # else the tolerance would prove little
    torch.testing.assert_close(bailing_moe_logits(folder, tokens_t), expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("shared", [0, 2])
@pytest.mark.parametrize("source", ["folder", "tied folder", "sharded folder", "gguf", "tied gguf"])
def test_the_moe_computes_what_the_dense_model_did(
    source: str, shared: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # A GGUF derives the head's width; a folder may state another.
    model = llama(tied="tied" in source, **({} if "gguf" in source else {"head_dim": 16, "rope_theta": 500.0}))
    if "gguf" in source:
        path = save_gguf(model, tmp_path / "dense.gguf")
    else:
        path = save_folder(model, tmp_path / "dense", **({"max_shard_size": "40kB"} if "sharded" in source else {}))
        assert (path / "model.safetensors.index.json").exists() == ("sharded" in source)
    out = tmp_path / "moe"
    flags = ["--experts", 4, "--top-k", 2, "--dtype", "fp32", "--shared-experts", shared]
    run(monkeypatch, "--source", path, "--out", out, *flags)
    assert_same_function(out, model)
    written = sum(w.numel() for w in load_file(out / "model.safetensors").values())
    assert f"became {written:,} " in capsys.readouterr().out
    config = json.loads((out / "config.json").read_text())
    assert (config["moe_intermediate_size"], config["num_shared_experts"]) == (36 // (shared + 1), shared)
    assert (config["model_type"], config["rms_norm_eps"], config["eos_token_id"]) == ("bailing_moe", 1e-5, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dense.gguf" if "gguf" in source else "dense", "moe"]


@pytest.mark.parametrize("source", ["folder", "gguf"])
def test_the_tokenizer_comes_along(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama()
    path = save_gguf(model, tmp_path / "a.gguf") if source == "gguf" else save_folder(model, tmp_path / "dense")
    run(monkeypatch, "--source", path, "--out", tmp_path / "moe")
    original, tokenizer = bpe(), RingTokenizer.load(tmp_path / "moe")
    for text in [*TEXTS, "".join(TEXTS), f"<|im_start|>user\n{TEXTS[0]}<|im_end|>"]:
        assert tokenizer.encode(text) == original.encode(text).ids
        assert tokenizer.decode(tokenizer.encode(text), skip_special=False) == text
    assert (tokenizer.eos_id, tokenizer.pad_id, tokenizer.encode("<|im_start|><|im_end|>")) == (2, 2, [1, 2])
    prompt = tokenizer.prompt_tokens("Say hi")
    asked = "<|im_start|>user\nSay hi<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(prompt, skip_special=False).endswith(asked)
    messages = [Message("user", "Say hi"), Message("assistant", "hi"), Message("user", "2"), Message("assistant", "3")]
    learnt = tokenizer.training_tokens(SFTRecord(messages=messages))
    assert learnt.tokens[: len(prompt)] == prompt
    said = [token for token, counts in zip(learnt.tokens, learnt.loss_mask, strict=True) if counts]
    assert tokenizer.decode(said, skip_special=False) == "hi<|im_end|>3<|im_end|>"


def test_noise_and_router_follow_the_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = save_folder(llama(hidden_size=96), tmp_path / "dense")
    runs = {"plain": [], "noisy": ["--noise", 0.1], "again": ["--noise", 0.1], "other": ["--noise", 0.1, "--seed", 2]}
    common = ["--source", source, "--shared-experts", 1, "--dtype", "fp32", "--router-std", 0.3]
    for name, flags in runs.items():
        run(monkeypatch, *common, "--out", tmp_path / name, *flags)
    files = {name: (tmp_path / name / "model.safetensors").read_bytes() for name in runs}
    assert files["noisy"] == files["again"] != files["other"]
    plain, noisy, other = (load_file(tmp_path / name / "model.safetensors") for name in ("plain", "noisy", "other"))
    changed = {name for name in plain if not plain[name].equal(noisy[name])}
    assert changed == {name for name in plain if ".mlp.experts." in name}
    for part in ("gate", "up", "down"):
        first, second = (f"model.layers.0.mlp.experts.{e}.{part}_proj.weight" for e in (0, 1))
        assert plain[first].equal(plain[second]) and not noisy[first].equal(noisy[second])
        assert 0.09 < (noisy[first] - plain[first]).std() / plain[first].std() < 0.11
    router = "model.layers.1.mlp.gate.weight"
    logits = torch.randn(500, 96) * plain["model.layers.1.post_attention_layernorm.weight"] @ plain[router].T
    assert 0.2 < logits.std() < 0.4 and not plain[router].equal(other[router])
    assert abs(plain[router] - plain["model.layers.0.mlp.gate.weight"]).min() > 0


def test_shards_and_bf16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama()
    source = save_folder(model, tmp_path / "dense")
    monkeypatch.setattr("megatron_ring.checkpoint.convert.SHARD_BYTES", 60_000)
    run(monkeypatch, "--source", source, "--out", tmp_path / "moe")
    index = json.loads((tmp_path / "moe/model.safetensors.index.json").read_text())
    files = sorted((tmp_path / "moe").glob("*.safetensors"))
    held = {name: (file.name, w) for file in files for name, w in load_file(file).items()}
    assert len(files) > 2 and files[0].name == f"model-00001-of-{len(files):05d}.safetensors"
    assert index["weight_map"] == {name: file for name, (file, _) in held.items()}
    assert {w.dtype for _, w in held.values()} == {torch.bfloat16}
    assert index["metadata"]["total_size"] == sum(w.nbytes for _, w in held.values())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())
    assert_same_function(tmp_path / "moe", model)


def edit_config(**settings: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **settings}))

    return edit


def add_tensor(name: str) -> Callable[[Any], None]:
    return lambda writer: writer.add_tensor(name, torch.zeros(48).numpy())


FOLDER_MISTAKES = {
    "attention bias": (edit_config(attention_bias=True), "attention_bias"),
    "mlp bias": (edit_config(mlp_bias=True), "mlp_bias"),
    "activation": (edit_config(hidden_act="gelu"), "hidden_act"),
    "old rope": (edit_config(rope_scaling={"type": "linear", "factor": 2.0}, rope_parameters=None), "'linear'"),
    "new rope": (edit_config(rope_parameters={"rope_type": "llama3", "factor": 8.0}), "'llama3'"),
    "another model": (edit_config(model_type="qwen2"), "'qwen2'"),
    "another shape": (edit_config(intermediate_size=40), "model.layers.0.mlp.gate_proj.weight has shape (36, 48)"),
    "fewer layers": (edit_config(num_hidden_layers=1), "model.layers.1."),
    "uneven heads": (edit_config(num_key_value_heads=4), "4 key-value heads"),
    "no JSON": (lambda folder: (folder / "config.json").write_text("{"), "config.json: not valid JSON"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors: cannot be read"),
    "half the weights": (
        lambda folder: (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:9000]),
        "model.safetensors: cannot be read",
    ),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "config.json: no such file"),
}
GGUF_MISTAKES = {
    "attention bias": (add_tensor("blk.0.attn_q.bias"), "blk.0.attn_q.bias"),
    "mlp bias": (add_tensor("blk.1.ffn_up.bias"), "blk.1.ffn_up.bias"),
    "rope factors": (add_tensor("rope_freqs.weight"), "rope_freqs.weight"),
    "rope scaling": (lambda writer: writer.add_string("llama.rope.scaling.type", "yarn"), "rope.scaling.type = 'yarn'"),
    "experts": (lambda writer: writer.add_expert_count(8), "llama.expert_count = 8"),
    "partial rope": (lambda writer: writer.add_rope_dimension_count(4), "llama.rope.dimension_count = 4"),
    "another tokenizer": (lambda writer: writer.kv_data[0].update(no_pre()), "'qwen2'"),
}


def no_pre() -> dict[str, Any]:
    from gguf import GGUFValueType
    from gguf.gguf_writer import GGUFValue

    return {"tokenizer.ggml.pre": GGUFValue("qwen2", GGUFValueType.STRING)}


def fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    """The one line that the tool ends with, exit status 2."""
    monkeypatch.setattr(sys, "argv", ["upcycle.py", *map(str, arguments)])
    capsys.readouterr()  # progress bars of save_pretrained
    with pytest.raises(SystemExit) as ended:
        run_main(upcycle.main)
    captured = capsys.readouterr()
    assert ended.value.code == 2 and captured.err.startswith("error: ") and captured.err.count("\n") == 1, captured.err
    return captured.err


@pytest.mark.parametrize("case", FOLDER_MISTAKES)
def test_a_folder_that_does_not_fit(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    edit, said = FOLDER_MISTAKES[case]
    source = save_folder(llama(), tmp_path / "dense")
    edit(source)
    assert said in fails(monkeypatch, capsys, "--source", source, "--out", tmp_path / "moe")
    assert [path.name for path in tmp_path.iterdir()] == ["dense"]


@pytest.mark.parametrize("case", GGUF_MISTAKES)
def test_a_gguf_that_does_not_fit(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    edit, said = GGUF_MISTAKES[case]
    source = save_gguf(llama(), tmp_path / "a.gguf", edit)
    assert said in fails(monkeypatch, capsys, "--source", source, "--out", tmp_path / "moe")
    assert [path.name for path in tmp_path.iterdir()] == ["a.gguf"]


def test_broken_files_and_impossible_flags(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = save_gguf(llama(), tmp_path / "whole.gguf").read_bytes()
    out = ["--out", tmp_path / "moe"]
    for size in (0, 3, 20, 200, 3000, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut.gguf").write_bytes(whole[:size])
        assert "cut.gguf: " in fails(monkeypatch, capsys, "--source", tmp_path / "cut.gguf", *out)
    source = ["--source", tmp_path / "whole.gguf"]
    for flags, said in (
        (["--experts", 4, "--top-k", 5], "--top-k 5: must lie between 1 and --experts 4"),
        (["--top-k", 1], "--top-k 1"),
        (["--shared-experts", 4], "width 36 does not divide into 5 equal parts"),
        (["--shared-experts", -1], "--shared-experts -1"),
        (["--noise", "nan"], "--noise nan"),
        (["--router-std", 0], "--router-std 0"),
        (["--dtype", "fp16"], "--dtype"),
        (["--expert", 4], "--experts"),
    ):
        assert said in fails(monkeypatch, capsys, *source, *out, *flags)
    assert "exists already" in fails(monkeypatch, capsys, *source, "--out", tmp_path)
    assert "--out" in fails(monkeypatch, capsys, *source, "--out", tmp_path / "whole.gguf" / "moe")
    assert "neither" in fails(monkeypatch, capsys, "--source", tmp_path / "none", *out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut.gguf", "whole.gguf"]


def test_values_that_are_not_finite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = llama()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] = torch.nan
    source = save_folder(model, tmp_path / "dense")
    assert "layers.1.mlp.up_proj.weight holds" in fails(monkeypatch, capsys, "--source", source, "--out", tmp_path / "moe")
    assert not (tmp_path / "moe").exists()
