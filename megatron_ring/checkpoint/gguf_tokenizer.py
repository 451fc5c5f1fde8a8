"""The tokenizer of a dense source: built from what a GGUF file says of it, or copied from a Hugging Face folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from megatron_ring.checkpoint.dense_gguf import gguf_value
from megatron_ring.errors import UserError

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
                   "chat_template.jinja", "chat_template.json", "tokenizer.model")  # fmt: skip


def write_gguf_tokenizer(path: Path, reader: Any, folder: Path) -> None:
    """Build the fast tokenizer that a GGUF file describes and write tokenizer.json and tokenizer_config.json.

    Built here rather than by transformers: its conversion (5.23) does not know the `smollm` splits and takes GPT-2's,
    which cut two spaces before a number in two. Raises `UserError` for another kind of tokenizer.
    """

    def setting(name: str) -> Any:
        return gguf_value(reader, f"tokenizer.{name}")

    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    # How text is cut before merging. `smollm`: every digit alone, the rest as GPT-2 does.
    digits = pre_tokenizers.Digits(individual_digits=True)
    splits = {"gpt-2": byte_level, "smollm": pre_tokenizers.Sequence([digits, byte_level])}
    kind, split = setting("ggml.model"), setting("ggml.pre")
    if kind != "gpt2" or split not in splits:
        raise UserError(
            f"{path}: its tokenizer is {kind!r} with the splits {split!r}; only 'gpt2' with {' or '.join(splits)} is read "
            "from GGUF: give the model's Hugging Face folder as --source"
        )
    tokens, merges = setting("ggml.tokens"), setting("ggml.merges")
    named = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    ids = {name: setting(f"ggml.{theirs}_token_id") for name, theirs in named.items()}
    if not tokens or not merges or ids["eos_token"] is None:
        raise UserError(f"{path}: lacks tokenizer.ggml.tokens, merges or eos_token_id")
    vocab = {token: index for index, token in enumerate(tokens)}
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    fits = all({left, right, left + right} <= vocab.keys() for left, right in pairs)
    if not fits or not all(0 <= index < len(tokens) for index in ids.values() if index is not None):
        raise UserError(f"{path}: tokenizer.ggml.merges or a special token's id names a token that is not there")
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=pairs))
    tokenizer.pre_tokenizer = splits[split]
    tokenizer.decoder = decoders.ByteLevel()
    control, user_defined = 3, 4  # of llama.cpp's token types
    types = setting("ggml.token_type") or []
    for token, number in zip(tokens, types, strict=False):
        if number in (control, user_defined):
            tokenizer.add_tokens([AddedToken(token, special=number == control, normalized=False)])
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{name: tokens[index] for name, index in ids.items() if index is not None},
        "additional_special_tokens": [token for token, number in zip(tokens, types, strict=False) if number == control],
        "clean_up_tokenization_spaces": False,
        "model_max_length": gguf_value(reader, "llama.context_length"),
        "chat_template": setting("chat_template"),
    }
    (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Take a Hugging Face folder's tokenizer as it is. Raises `UserError` where there is none."""
    if not (source / "tokenizer.json").is_file():
        raise UserError(f"{source}: holds no tokenizer.json")
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
