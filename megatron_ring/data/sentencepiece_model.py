"""A sentencepiece `.model` file as a tokenizer of transformers, and as a folder that transformers loads."""

from __future__ import annotations

import io
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from megatron_ring.data.bpe import CHAT_TEMPLATE, EOS, SPECIAL_TOKENS, with_role_names
from megatron_ring.data.chat_template import read_template
from megatron_ring.data.writing import write_atomically
from megatron_ring.errors import UserError

CLASS = "RingSentencePieceTokenizer"
MODULE = "tokenization_ring_sentencepiece"
USER_DEFINED = SPECIAL_TOKENS[1:]
Kind = Literal["bpe", "unigram"]


def find_model(path: Path) -> Path | None:
    """The model file that `path` is, or the only one of a folder that describes no other tokenizer; else None.

    Raises:
        UserError: a folder holds several.
    """
    if path.is_file() and path.suffix == ".model":
        return path
    if not path.is_dir() or (path / "tokenizer.json").exists():
        return None
    config = path / "tokenizer_config.json"
    if config.exists() and CLASS not in config.read_text(encoding="utf-8", errors="replace"):
        return None
    found = sorted(path.glob("*.model"))
    if len(found) > 1:
        names = ", ".join(file.name for file in found)
        raise UserError(f"{path}: holds several sentencepiece models ({names}): name the file")
    return found[0] if found else None


def load_model(model: Path) -> Any:
    """The tokenizer of a model file. Its chat template is that of `chat_template.jinja` or tokenizer_config.json beside the
    file, else the default.

    Raises:
        UserError: not a sentencepiece model, or one without an end-of-text piece.
    """
    import sentencepiece

    from megatron_ring.checkpoint.hf_code.tokenization_ring_sentencepiece import RingSentencePieceTokenizer

    try:
        processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    except (OSError, RuntimeError):
        raise UserError(f"{model}: not a readable sentencepiece model: copy it again") from None
    if processor.eos_id() < 0:
        raise UserError(f"{model}: the sentencepiece model has no end of text: train it with an eos_id")
    return RingSentencePieceTokenizer(model, **_settings(processor, model.parent))


def write_folder(model: Path, out: Path) -> None:
    """Write a folder that holds the model, its settings and the code with which transformers loads it."""
    tokenizer = load_model(model)
    out.mkdir(parents=True, exist_ok=True)
    if model.resolve() != (out / "tokenizer.model").resolve():
        shutil.copyfile(model, out / "tokenizer.model")
    settings = _settings(tokenizer.sp_model, model.parent)
    config = {
        "tokenizer_class": CLASS,
        "auto_map": {"AutoTokenizer": [f"{MODULE}.{CLASS}", None]},
        **settings,
        "model_max_length": 131_072,
        "clean_up_tokenization_spaces": False,
    }
    write_atomically(out / "tokenizer_config.json", json.dumps(config, indent=2, ensure_ascii=False).encode())
    import megatron_ring.checkpoint.hf_code as code

    shutil.copyfile(Path(str(code.__file__)).with_name(f"{MODULE}.py"), out / f"{MODULE}.py")


@contextmanager
def tokenizer_folder(path: Path | None, chat_template: Path | None = None) -> Iterator[Path | None]:
    """The folder that an export takes: one is made for a sentencepiece model, and where another chat template is to go with
    the tokenizer; else it is `path` itself."""
    model = None if path is None else find_model(path)
    if path is None or (model is None and chat_template is None):
        yield path
        return
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        if model is not None:
            write_folder(model, folder)
        else:
            from megatron_ring.checkpoint.hf_folder import copy_tokenizer

            copy_tokenizer(path, folder)
        if chat_template is not None:
            _replace_template(folder, read_template(chat_template))
        yield folder


def _replace_template(folder: Path, template: str) -> None:
    """Make this the only template of a tokenizer's folder."""
    (folder / "chat_template.json").unlink(missing_ok=True)
    shutil.rmtree(folder / "additional_chat_templates", ignore_errors=True)
    write_atomically(folder / "chat_template.jinja", template.encode())
    config = folder / "tokenizer_config.json"
    if config.is_file():
        try:
            settings = {**json.loads(config.read_bytes()), "chat_template": template}
        except (ValueError, TypeError):
            raise UserError(f"{config}: not a JSON object: copy it again") from None
        write_atomically(config, json.dumps(settings, indent=2, ensure_ascii=False).encode())


def _settings(processor: Any, folder: Path) -> dict[str, Any]:
    """Special pieces by their roles, the other control pieces, and the chat template."""
    named = {"bos_token": processor.bos_id(), "eos_token": processor.eos_id(), "pad_token": processor.pad_id()}
    settings: dict[str, Any] = {name: processor.id_to_piece(index) for name, index in named.items() if index >= 0}
    settings.setdefault("pad_token", settings["eos_token"])
    template, config = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    settings["chat_template"] = CHAT_TEMPLATE
    if template.is_file():
        settings["chat_template"] = template.read_text(encoding="utf-8")
    elif config.is_file():
        try:
            settings["chat_template"] = json.loads(config.read_bytes())["chat_template"]
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{config}: names no chat_template: add chat_template.jinja") from None
    pieces = [(index, processor.id_to_piece(index)) for index in range(processor.get_piece_size())]
    # Role marks are pieces that sentencepiece finds in any text; a user's text may not spell them.
    marks = [piece for index, piece in pieces if processor.is_control(index) and index not in named.values()]
    marks += [piece for piece in USER_DEFINED if processor.piece_to_id(piece) != processor.unk_id()]
    settings["additional_special_tokens"] = marks
    return settings


def train_model(texts: Iterable[str], kind: Kind, vocab_size: int, out: Path) -> int:
    """Train a sentencepiece model that loses nothing, and write it as a folder; the same texts give the same bytes.

    Text is not normalised, every digit is a piece, bytes stand for what has no piece. Returns the size of the vocabulary.
    Raises `UserError` for a size that is too small or too large for the texts, and for no text.
    """
    import sentencepiece

    writer = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(with_role_names(texts)), model_writer=writer, model_type=kind, vocab_size=vocab_size,
            byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False, add_dummy_prefix=False,
            allow_whitespace_only_pieces=True, split_digits=True, character_coverage=0.9995, hard_vocab_limit=False,
            user_defined_symbols=list(USER_DEFINED), unk_id=0, eos_id=1, bos_id=-1, pad_id=-1, eos_piece=EOS, num_threads=1,
            max_sentence_length=1 << 20, minloglevel=2,
        )  # fmt: skip
    except (RuntimeError, OSError) as error:
        reason = str(error).strip().splitlines()[-1][-200:]
        raise UserError(
            f"sentencepiece cannot train {vocab_size} pieces on these texts ({reason}): choose another size"
        ) from None
    write_atomically(out / "tokenizer.model", writer.getvalue())
    write_folder(out / "tokenizer.model", out)
    return int(sentencepiece.SentencePieceProcessor(model_proto=writer.getvalue()).get_piece_size())
