"""Train a small byte-level BPE and save it as a Hugging Face tokenizer directory, the same bytes for the same texts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from megatron_ring.data.writing import write_atomically
from megatron_ring.errors import UserError

EOS = "<|endoftext|>"
SPECIAL_TOKENS = (EOS, "<role>", "</role>")
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% set role = 'HUMAN' if message['role'] == 'user' else message['role'] | upper %}"
    "{{ '<role>' + role + '</role>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<role>ASSISTANT</role>' }}{% endif %}"
)
# What a token may span: a LaTeX command with its opening brace, one digit, a word, a run of marks, white space.
_WORDS = r"\\\p{L}+\{?|\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}\\]+|\s+|\\"
_ROLE_NAMES = ("SYSTEM", "HUMAN", "ASSISTANT")


def train_bpe(texts: Iterable[str], vocab_size: int, out_dir: str | Path) -> int:
    """Train on `texts` and write a tokenizer directory; return its vocabulary size (largest id + 1).

    Every digit is a token of its own, so numbers are read digit by digit. The size falls short of `vocab_size` when
    the texts have no more pairs to merge. Raises `UserError` for a size that cannot hold all bytes, and for no text.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    smallest = len(alphabet) + len(SPECIAL_TOKENS)
    if vocab_size < smallest:
        raise UserError(f"vocabulary size {vocab_size}: choose at least {smallest} (all bytes and special tokens)")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(with_role_names(texts), trainer)
    _save(tokenizer, Path(out_dir))
    return max(tokenizer.get_vocab().values()) + 1


def with_role_names(texts: Iterable[str]) -> Iterator[str]:
    """Add the role names as often as there are texts: each becomes one token, and framing a prompt costs six."""
    empty = True
    for text in texts:
        empty = False
        yield text
        yield from _ROLE_NAMES
    if empty:
        raise UserError("there is no text to train the tokenizer on: give at least one")


def _save(tokenizer: Tokenizer, out_dir: Path) -> None:
    """Write the files by hand: save_pretrained would put its library's version, and hence other bytes, into them."""
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": EOS,
        "pad_token": EOS,
        "additional_special_tokens": list(SPECIAL_TOKENS[1:]),
        "clean_up_tokenization_spaces": False,
        "model_max_length": 131_072,
        "chat_template": CHAT_TEMPLATE,
    }
    files = {"tokenizer_config.json": json.dumps(config, indent=2), "tokenizer.json": tokenizer.to_str(pretty=True)}
    for name, text in files.items():
        write_atomically(out_dir / name, text.encode())
