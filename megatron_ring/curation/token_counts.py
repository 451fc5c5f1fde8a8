"""How many tokens a text has, by a tokenizer's file alone."""

from __future__ import annotations

from pathlib import Path

from megatron_ring.errors import UserError


class TokenCounter:
    """Counts with the tokenizer of a folder, or of a tokenizer.json. Raises `UserError`, which begins with `where`."""

    def __init__(self, path: Path, where: str) -> None:
        from tokenizers import Tokenizer

        file = path / "tokenizer.json" if path.is_dir() else path
        try:
            self._tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises nothing narrower
            raise UserError(f"{where}: tokenizer: {file}: {error}: give a folder with tokenizer.json") from None

    def __call__(self, text: str) -> int:
        return len(self._tokenizer.encode(text).ids)
