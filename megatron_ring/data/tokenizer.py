"""Text to tokens and back: a Hugging Face tokenizer directory with the chat template of the Ling models.

`<role>SYSTEM</role>...<role>HUMAN</role>...<role>ASSISTANT</role>...<|endoftext|>`

One rule keeps training and sampling on the same tokens: a conversation is cut into pieces at the borders of assistant
messages, and each piece is tokenized on its own. So `prompt_tokens` of a conversation is always a prefix of the
`training_tokens` of its continuation, under any template.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_ring.data.bpe import train_bpe
from megatron_ring.data.records import Message, SFTRecord
from megatron_ring.data.sequences import TokenSequence
from megatron_ring.errors import UserError

__all__ = ["BOXED_INSTRUCTION", "RingTokenizer", "train_bpe"]

# The instruction that the Ring-lite report puts into prompts.
BOXED_INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."


class RingTokenizer:
    """A Hugging Face fast tokenizer and its chat template. Build it with `RingTokenizer.load`."""

    def __init__(self, tokenizer: Any, path: Path) -> None:
        """Wrap a loaded tokenizer; `path` is where it came from, for messages. Raises `UserError` without an eos."""
        if tokenizer.eos_token_id is None:
            raise UserError(f"{path}: the tokenizer has no eos token: set eos_token in tokenizer_config.json")
        self._tokenizer = tokenizer
        self._path = path
        self.eos_id: int = tokenizer.eos_token_id
        self.pad_id: int = self.eos_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        # Ids may have gaps (the Ling vocabulary does), so the largest id counts, not the number of tokens.
        self.vocab_size: int = max(tokenizer.get_vocab().values()) + 1

    @classmethod
    def load(cls, path: str | Path) -> RingTokenizer:
        """Load a tokenizer directory. Nothing is downloaded, no code of the directory runs. Raises `UserError`."""
        path = Path(path)
        if not path.is_dir():
            raise UserError(f"{path}: no such tokenizer directory: give a folder that holds tokenizer.json")
        # Fast tokenizers warn, and stop using threads, when the process forks after their first use.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        # transformers advises at import to install a framework; a tokenizer needs none.
        logging.getLogger("transformers").addFilter(lambda record: "None of PyTorch" not in record.getMessage())
        from transformers import AutoTokenizer, PreTrainedTokenizerFast

        # Ring-lite's config.json names remote code, which AutoTokenizer would ask to trust; tokenizer.json needs none.
        whole = (path / "tokenizer.json").is_file()
        loader: Any = PreTrainedTokenizerFast if whole else AutoTokenizer
        try:
            tokenizer = loader.from_pretrained(str(path), local_files_only=True)
        except Exception as error:  # transformers raises many kinds for a broken directory
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(f"{path}: not a usable tokenizer directory ({reason}): it needs tokenizer.json") from None
        return cls(tokenizer, path)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, nothing added; special tokens written in the text become their ids."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return ids

    def decode(self, tokens: Sequence[int], skip_special: bool = True) -> str:
        """The text of token ids; special tokens (eos, pad, role marks) are left out unless `skip_special` is false."""
        text = self._tokenizer.decode(list(tokens), skip_special_tokens=skip_special, clean_up_tokenization_spaces=False)
        return str(text)

    def prompt_tokens(self, prompt: str | Sequence[Message], instruction: str | None = None) -> list[int]:
        """Tokens of a text or conversation, up to the point where the assistant begins to answer.

        `instruction`, when given, follows every user message on a line of its own (see `BOXED_INSTRUCTION`).
        Raises `UserError` when the tokenizer has no chat template.
        """
        messages = [Message("user", prompt)] if isinstance(prompt, str) else list(prompt)
        answered = [*messages, Message("assistant", "")]
        pieces = self._pieces(_instruct(answered, instruction))
        return [token for text, _ in pieces[:-1] for token in self.encode(text)]

    def training_tokens(self, record: SFTRecord, instruction: str | None = None) -> TokenSequence:
        """Tokens of a conversation and the mask of those to be learnt.

        Learnt are the assistant's messages and the eos that ends each, never prompts. A template that writes no eos
        between turns (the public Ling templates) has one after the last message only, as the sampler will see it.
        Raises `UserError` when the template changes earlier turns as the conversation grows.
        """
        tokens: list[int] = []
        loss_mask: list[bool] = []
        follows_response = False
        for text, is_response in self._pieces(_instruct(record.messages, instruction)):
            piece = self.encode(text)
            tokens += piece
            loss_mask += [is_response] * len(piece)
            if follows_response and piece[:1] == [self.eos_id]:
                loss_mask[-len(piece)] = True
            follows_response = is_response
        return TokenSequence([*tokens, self.eos_id], [*loss_mask, True])

    def _pieces(self, messages: Sequence[Message]) -> list[tuple[str, bool]]:
        """Cut a conversation that ends with the assistant into (text, is a response), template text between."""
        pieces: list[tuple[str, bool]] = []
        done = ""
        for index, message in enumerate(messages):
            if message.role == "assistant":
                prompt = self._render(messages[:index])
                if not prompt.startswith(done):
                    raise UserError(
                        f"{self._path}: the chat template changes earlier turns as a conversation grows: "
                        f"split such conversations into one record per answer"
                    )
                pieces += [(prompt[len(done) :], False), (message.content, True)]
                done = prompt + message.content
        return pieces

    def _render(self, messages: Sequence[Message]) -> str:
        if not self._tokenizer.chat_template:
            raise UserError(f"{self._path}: the tokenizer has no chat template: add chat_template.jinja")
        conversation = [{"role": message.role, "content": message.content} for message in messages]
        return str(self._tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True))


def _instruct(messages: Sequence[Message], instruction: str | None) -> list[Message]:
    """Put the instruction after every user message: after the last only, a prefix would not stay a prefix."""
    if instruction is None:
        return list(messages)
    return [
        Message(message.role, f"{message.content}\n{instruction}") if message.role == "user" else message
        for message in messages
    ]
