"""The markdown of the project as its tests read it: links, anchors, and the command lines of its shell fences."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SHELL = ("bash", "sh", "console")
_FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.M | re.S)
_HEADING = re.compile(r"^#{1,6} (.+?)\s*$", re.M)
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_HEREDOC = re.compile(r"<<-?\s*['\"]?(\w+)['\"]?.*?\n.*?^\1$", re.M | re.S)
_INDENTED = re.compile(r"^ {4}((?:\w+=\S* )*(?:python|torchrun|make|sbatch|examples/\S+\.sh)\s.*)$", re.M)
_SUBSTITUTION = re.compile(r"\$\(([^()]*)\)")
_SEPARATORS = {"|", "||", "&&", ";", "&"}
_REDIRECTIONS = {">", ">>", "<"}


@dataclass(frozen=True)
class Command:
    """One simple command of a page: its words, settings of the environment before it left out."""

    place: str
    words: tuple[str, ...]


def pages(root: Path) -> list[Path]:
    """README and every page below docs/."""
    return [root / "README.md", *sorted((root / "docs").rglob("*.md"))]


def prose(text: str) -> str:
    """A page without its fences and inline code, which hold no links."""
    return re.sub(r"`[^`\n]*`", "", _FENCE.sub("", text))


def links(text: str) -> list[str]:
    """Targets of the links and images of a page."""
    return _LINK.findall(prose(text))


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    found: dict[str, int] = {}
    result = set()
    for heading in _HEADING.findall(_FENCE.sub("", text)):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        anchor = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        count = found.get(anchor, 0)
        found[anchor] = count + 1
        result.add(f"{anchor}-{count}" if count else anchor)
    return result


def fences(text: str) -> list[tuple[str, str, int]]:
    """Language, text and line number of each fence."""
    return [(match[1], match[2], text[: match.start()].count("\n") + 2) for match in _FENCE.finditer(text)]


def commands(page: str, text: str) -> Iterator[Command]:
    """The simple commands of the shell fences of a page, those inside $(…) too. In a console fence they follow a $. Lines of
    indented code count where they begin with one of our commands."""
    outside = _FENCE.sub(lambda fence: "\n" * fence[0].count("\n"), text)
    for match in _INDENTED.finditer(outside):
        yield from _commands(f"{page}:{outside.count(chr(10), 0, match.start()) + 1}", match[1])
    for language, body, line in fences(text):
        if language not in SHELL:
            continue
        if language == "console":
            body = "\n".join(row[2:] for row in body.splitlines() if row.startswith("$ "))
        yield from _commands(f"{page}:{line}", body)


def _commands(place: str, script: str) -> Iterator[Command]:
    script = _HEREDOC.sub("", script)
    for inner in _SUBSTITUTION.findall(script):
        yield from _commands(place, inner)
    script = _SUBSTITUTION.sub("VALUE", script).replace("\\\n", " ")
    script = re.sub(r"\|\s*\n", "| ", script)
    for row in script.splitlines():
        lexer = shlex.shlex(row, posix=True, punctuation_chars="|&;<>")
        lexer.whitespace_split, lexer.commenters = True, "#"
        words: list[str] = []
        for word in [*lexer, ";"]:
            if word in _SEPARATORS:
                simple = _without_settings(words)
                if simple:
                    yield Command(place, simple)
                words = []
            else:
                words.append(word)


def _without_settings(words: list[str]) -> tuple[str, ...]:
    """A command without variables set before it and without redirections."""
    kept: list[str] = []
    rest = iter(words)
    for word in rest:
        if word in _REDIRECTIONS:
            next(rest, None)
        elif kept or not re.match(r"[A-Za-z_]\w*=", word):
            kept.append(word)
    return tuple(kept)
