"""The judge's prompts: files beside this module, each with a version in its first line."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).with_name("prompts")
_FIELD = re.compile(r"\{\{(\w+)\}\}")


@dataclass(frozen=True)
class JudgePrompt:
    """A prompt with fields such as `{{answer}}`. `version` is raised with every change of the text."""

    name: str
    version: int
    text: str

    @property
    def sha256(self) -> str:
        """Of the text, 64 hex digits."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    def fill(self, fields: Mapping[str, str]) -> str:
        """The prompt with its fields filled in. A field's text is taken as it is: `{{…}}` in it stays."""
        return _FIELD.sub(lambda found: fields[found[1]], self.text)


def read_prompt(name: str) -> JudgePrompt:
    """The prompt of that name. Raises ValueError where its first line has no version."""
    head, _, text = (FOLDER / f"{name}.txt").read_text(encoding="utf-8").partition("\n")
    version = re.fullmatch(r"version: (\d+)", head)
    if version is None:
        raise ValueError(f"{name}.txt: the first line is {head!r}, not `version: N`")
    return JudgePrompt(name, int(version[1]), text.strip())
