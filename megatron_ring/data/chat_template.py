"""A chat template from a file of its own."""

from __future__ import annotations

import json
from pathlib import Path

from megatron_ring.errors import UserError

PROBE = "What is seven times six?"
"""What a template is tried with."""


def read_template(path: Path) -> str:
    """The template that a file holds: Jinja, or JSON with a `chat_template`, as chat_template.json and tokenizer_config.json
    of published folders have it. Raises `UserError` for another file; whether it is Jinja is not looked at."""
    if path.is_dir():
        raise UserError(f"{path}: a folder: give the file of the chat template, such as {path / 'chat_template.jinja'}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: the chat template cannot be read: {error.strerror}: check the path") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: the chat template is not UTF-8: save the file as UTF-8") from None
    if path.suffix == ".json":
        try:
            found = json.loads(text)["chat_template"]
        except (ValueError, KeyError, TypeError, RecursionError):
            found = None
        if not isinstance(found, str):
            raise UserError(f"{path}: holds no text 'chat_template': give a file of Jinja, or a JSON file with that key")
        text = found
    if not text.strip():
        raise UserError(f"{path}: the chat template is empty")
    return text
