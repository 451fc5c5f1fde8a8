"""Text to tokens and back: a Hugging Face tokenizer directory with the chat template of the Ling models.

`<role>SYSTEM</role>...<role>HUMAN</role>...<role>ASSISTANT</role>...<|endoftext|>`

One rule keeps training and sampling on the same tokens: a conversation is cut into pieces at the borders of assistant
messages, and each piece is tokenized on its own. So `prompt_tokens` of a conversation is always a prefix of the
`training_tokens` of its continuation, under any template.

A template may open `<think>` where the assistant begins. A response then goes on inside it: its own `<think>` is left out,
and one that does not think closes it first.

A text that spells a control token (the end of a text, the mark of a role) would become that token: a user could end a turn,
a response would teach the model to stop in the middle. Such texts are refused.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from megatron_ring.data.bpe import train_bpe
from megatron_ring.data.chat_template import PROBE, read_template
from megatron_ring.data.documents import ControlTokens, DocumentEncoder, any_of
from megatron_ring.data.records import Message, SFTRecord
from megatron_ring.data.rendering import render
from megatron_ring.data.sentencepiece_model import find_model, load_model
from megatron_ring.data.sequences import TokenSequence
from megatron_ring.data.token_text import TokenText, bytes_in_runs
from megatron_ring.data.turns import (
    BOXED_INSTRUCTION,
    END_OF_THINK,
    THINK,
    TrainOn,
    after_prompt,
    trained_messages,
    with_instruction,
)
from megatron_ring.errors import UserError

__all__ = ["BOXED_INSTRUCTION", "ControlTokenError", "RingTokenizer", "TrainOn", "train_bpe"]


class ControlTokenError(UserError):
    """A text that spells a control token."""


class RingTokenizer:
    """A Hugging Face fast tokenizer and its chat template. Build it with `RingTokenizer.load`."""

    def __init__(self, tokenizer: Any, path: Path) -> None:
        """`path`: where the tokenizer came from, for messages. Raises `UserError` without an eos."""
        if tokenizer.eos_token_id is None:
            raise UserError(f"{path}: the tokenizer has no eos token: set eos_token in tokenizer_config.json")
        self._tokenizer = tokenizer
        self._path = self._template_path = path
        self._backend: Any = None
        self.eos_id: int = tokenizer.eos_token_id
        self.pad_id: int = self.eos_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        # Ids may have gaps (the Ling vocabulary does), so the largest id counts, not the number of tokens.
        vocabulary = tokenizer.get_vocab()
        self._known = frozenset(vocabulary.values())
        self.vocab_size: int = max(self._known) + 1
        added = tokenizer.added_tokens_decoder
        self._special = frozenset(tokenizer.all_special_ids) | {token for token, one in added.items() if one.special}
        controls = {str(token) for token in tokenizer.all_special_tokens} | {t.content for t in added.values() if t.special}
        self._byte_tokens = bytes_in_runs(self.decode, vocabulary)
        self._control = any_of(controls)
        self._control_of_answers = any_of(controls - {THINK, END_OF_THINK})  # where thinking has tokens of its own

    @property
    def fingerprint(self) -> str:
        """A hash (32 hex digits) of all that decides which tokens a conversation becomes: vocabulary, merges, special tokens
        and the chat template, wherever the folder lies."""
        parts = (self._vocabulary(), repr(self._tokenizer.chat_template), self.eos_id, self.pad_id)
        return hashlib.blake2b(repr(parts).encode(errors="surrogatepass"), digest_size=16).hexdigest()

    @property
    def vocabulary_fingerprint(self) -> str:
        """A hash (32 hex digits) of what decides which tokens a plain text becomes, and of the end that follows it: the
        fingerprint without chat template and pad."""
        parts = (self._vocabulary(), self.eos_id)
        return hashlib.blake2b(repr(parts).encode(errors="surrogatepass"), digest_size=16).hexdigest()

    def _vocabulary(self) -> str:
        pieces = getattr(self._tokenizer, "sp_model", None)
        if pieces is not None:
            return hashlib.sha256(pieces.serialized_model_proto()).hexdigest()
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        return str(backend.to_str()) if backend is not None else repr(sorted(self._tokenizer.get_vocab().items()))

    def document_encoder(self, control_tokens: ControlTokens = "split") -> DocumentEncoder:
        """What tokenises many plain texts at once, in this process or another."""
        return DocumentEncoder(self._tokenizer, self._control.pattern, control_tokens)

    @classmethod
    def load(cls, path: str | Path, chat_template: Path | None = None) -> RingTokenizer:
        """Load a tokenizer directory, a sentencepiece `.model` file, or a directory that holds only one (see
        `sentencepiece_model`). Nothing is downloaded, no code of the directory runs.

        Args:
            chat_template: a file in place of the tokenizer's own template (`chat_template.read_template`).

        Raises:
            UserError: there is no such tokenizer; the template cannot be read, or does not show a user's message.
        """
        loaded = cls._load(Path(path))
        if chat_template is not None:
            loaded._use_template(chat_template)
        return loaded

    def _use_template(self, path: Path) -> None:
        self._tokenizer.chat_template, self._template_path = read_template(path), path
        if PROBE not in self._render([Message("user", PROBE)]):
            raise UserError(f"{path}: not a chat template: it does not show what the user says")

    @classmethod
    def _load(cls, path: Path) -> RingTokenizer:
        model = find_model(path)
        if model is None and not path.is_dir():
            mend = "give a folder that holds tokenizer.json, or a sentencepiece .model file"
            raise UserError(f"{path}: no such tokenizer directory: {mend}")
        # Fast tokenizers warn, and stop using threads, when the process forks after their first use.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        # transformers advises at import to install a framework; a tokenizer needs none.
        logging.getLogger("transformers").addFilter(lambda record: "None of PyTorch" not in record.getMessage())
        if model is not None:
            return cls(load_model(model), path)
        import transformers  # it loads what is named alone: AutoTokenizer takes 0.3 s

        # Ring-lite's config.json names remote code, which AutoTokenizer would ask to trust; tokenizer.json needs none.
        whole = (path / "tokenizer.json").is_file()
        loader: Any = transformers.PreTrainedTokenizerFast if whole else transformers.AutoTokenizer
        try:
            tokenizer = loader.from_pretrained(str(path), local_files_only=True)
        except Exception as error:  # transformers raises many kinds for a broken directory
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(f"{path}: not a usable tokenizer directory ({reason}): it needs tokenizer.json") from None
        loaded = cls(tokenizer, path)
        if whole and not getattr(tokenizer, "split_special_tokens", False):
            loaded._backend = tokenizer.backend_tokenizer
            loaded._backend.no_truncation()
            loaded._backend.no_padding()
        return loaded

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, nothing added; special tokens written in the text become their ids. Raises `UserError` for
        half of a surrogate pair, which is no character."""
        try:
            if self._backend is not None:  # the same, without what transformers adds to each call
                return list(self._backend.encode_batch_fast([text], add_special_tokens=False)[0].ids)
            ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
            return ids
        except (TypeError, UnicodeEncodeError):
            # Files are read without such halves. JSON text inside a value, as arguments of calls are, may spell one.
            broken = any("\ud800" <= letter <= "\udfff" for letter in text)
            if not broken:
                raise
            raise UserError(
                "the text holds half of a surrogate pair (\\ud800 to \\udfff): remove the broken character"
            ) from None

    def decode(self, tokens: Sequence[int], skip_special: bool = True) -> str:
        """The text of token ids; special tokens (eos, pad, role marks) are left out unless `skip_special` is false."""
        text = self._tokenizer.decode(list(tokens), skip_special_tokens=skip_special, clean_up_tokenization_spaces=False)
        return str(text)

    def token_text(self, skip_special: bool = True) -> TokenText:
        """How tokens that come one after another become text: that of `decode`."""
        left_out = self._special if skip_special else frozenset()
        return TokenText(partial(self.decode, skip_special=skip_special), left_out, self._known, self._byte_tokens)

    def prompt_tokens(
        self, prompt: str | Sequence[Message], instruction: str | None = None, settings: Mapping[str, Any] | None = None
    ) -> list[int]:
        """Tokens of a text or conversation, up to the point where the assistant begins to answer.

        `instruction`, when given, follows every user message on a line of its own (see `BOXED_INSTRUCTION`). `settings` are
        further values for the template.
        Raises `UserError` when the tokenizer has no chat template or the template refuses the conversation, and
        `ControlTokenError` for a text that spells a control token.
        """
        messages = [Message("user", prompt)] if isinstance(prompt, str) else list(prompt)
        self._check_controls(messages)
        answered = [*messages, Message("assistant", "")]
        pieces = self._pieces(with_instruction(answered, instruction), [False] * len(answered), settings)
        return [token for text, _ in pieces[:-1] for token in self.encode(text)]

    def special_texts(self) -> dict[str, str | None]:
        """Texts of the special tokens that others ask for, and the chat template."""
        names = ("bos_token", "eos_token", "pad_token", "unk_token")
        found = {name: getattr(self._tokenizer, name) for name in names}
        template = self._tokenizer.chat_template
        return {name: None if text is None else str(text) for name, text in found.items()} | {
            "chat_template": template if isinstance(template, str) else None
        }

    def check_prompt(self, prompt: str | Sequence[Message]) -> None:
        """Raise what `prompt_tokens` raises, but for the template."""
        self._check_controls([Message("user", prompt)] if isinstance(prompt, str) else prompt)

    def training_tokens(
        self, record: SFTRecord, instruction: str | None = None, train_on: TrainOn = "all", controls: bool = False
    ) -> TokenSequence:
        """Tokens of a conversation and the mask of those to be learnt.

        Learnt are assistant's messages and the eos that ends each, never prompts. A template that writes no eos
        between turns (the public Ling templates) has one after the last message only, as the sampler will see it.

        Args:
            train_on: which of the assistant's messages: all but those that the record marks not to be trained; of these the
                last alone; or those that it marks to be trained.
            controls: take control tokens in texts for what they spell, instead of refusing them.

        Raises:
            UserError: the template changes earlier turns as the conversation grows or refuses it; no message is trained.
            ControlTokenError: a text spells a control token.
        """
        if not controls:
            self._check_controls(record.messages)
        learnt = trained_messages(record, train_on)
        tokens, loss_mask = list[int](), list[bool]()
        ended_learnt = False  # whether the piece before is a response that is learnt
        for text, message in self._pieces(with_instruction(record.messages, instruction), learnt):
            piece = self.encode(text)
            is_learnt = message is not None and learnt[message]
            tokens += piece
            loss_mask += [is_learnt] * len(piece)
            if ended_learnt and piece[:1] == [self.eos_id]:
                loss_mask[-len(piece)] = True
            ended_learnt = is_learnt
        return TokenSequence([*tokens, self.eos_id], [*loss_mask, ended_learnt])

    def text_tokens(self, text: str, controls: bool = False) -> list[int]:
        """Tokens of a text as it is, without a template, and the eos that ends it. Raises `ControlTokenError` for one that
        spells a control token, unless `controls`."""
        if not controls:
            self._check_controls([Message("user", text)])
        return [*self.encode(text), self.eos_id]

    def _check_controls(self, messages: Iterable[Message]) -> None:
        for message in messages:
            control = self._control_of_answers if message.role == "assistant" else self._control
            found = control.search(f"{message.content}\n{message.calls}") or self._control.search(message.tools)
            if found is not None:
                raise ControlTokenError(
                    f"the {message.role}'s text spells the control token {found[0]!r}: take it out of the text, or leave "
                    f"the conversation out"
                )

    def _pieces(
        self, messages: Sequence[Message], learnt: Sequence[bool], settings: Mapping[str, Any] | None = None
    ) -> list[tuple[str, int | None]]:
        """Cut a conversation that ends with the assistant into (text, index of the response; None: template text).

        A template may show earlier turns otherwise once the conversation goes on, as one that drops their thinking. What
        comes before the last answer is one piece then, as the template shows it there.

        Raises:
            UserError: such a template changes an answer that is `learnt`.
        """
        pieces: list[tuple[str, int | None]] = []
        done = ""
        for index, message in enumerate(messages):
            if message.role == "assistant":
                prompt = self._render(messages[:index], settings)
                if not prompt.startswith(done):
                    if any(learnt[:index]):
                        raise UserError(
                            f"{self._template_path}: the chat template changes earlier turns as a conversation grows: "
                            f"split such conversations into one record per answer, or take --data.train-on last"
                        )
                    pieces, done = [], ""
                response = self._response(messages[: index + 1], prompt, settings)
                if response is not None:
                    pieces += [(prompt[len(done) :], None), (response, index)]
                    done = prompt + response
                elif learnt[index]:  # else it is a part of the next piece
                    raise UserError(
                        f"{self._template_path}: the chat template does not show an answer with calls behind where answers "
                        f"begin: leave such conversations out, or do not train these messages"
                    )
        return pieces

    def _response(self, messages: Sequence[Message], prompt: str, settings: Mapping[str, Any] | None) -> str | None:
        """What the last message says after `prompt`, calls as the template writes them; None where it does so elsewhere."""
        if not messages[-1].calls:
            return after_prompt(prompt, messages[-1].content)
        whole = self._render(messages, {**(settings or {}), "add_generation_prompt": False})
        if not whole.startswith(prompt):
            return None
        response, end, after = whole[len(prompt) :].rpartition(str(self._tokenizer.eos_token))
        return response if end and not after.strip() else whole[len(prompt) :]

    def _render(self, messages: Sequence[Message], settings: Mapping[str, Any] | None = None) -> str:
        return render(self._tokenizer, self._template_path, messages, settings or {})
