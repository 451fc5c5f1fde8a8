"""The words of a formula: numbers, letters, commands, signs."""

from __future__ import annotations

import re

MAX_CHARACTERS = 4096
MAX_TOKENS = 2000

_TOKEN = re.compile(
    r"\s*(?:(\d{1,3}(?:,\d{3}){1,60}(?!\d)(?:\.\d{1,200})?|\d{1,4000}(?:\.\d{0,200})?|\.\d{1,200})|(\\[A-Za-z]+|\\[{}|])"
    r"|([A-Za-z]+)|([-+*/^_!'()\[\]{}|,=]))",
    re.ASCII,
)
_SPACE = re.compile(r"\s*")
# By the name they are written with, with or without a backslash; the value is ours.
FUNCTIONS = {
    **{name: name for name in ("sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh", "coth")},
    "exp": "exp", "ln": "ln", "log": "log",
    **{f"arc{name}": f"arc{name}" for name in ("sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh")},
    **{f"a{name}": f"arc{name}" for name in ("sin", "cos", "tan", "sinh", "cosh", "tanh")},
    **{f"ar{name}": f"arc{name}" for name in ("sinh", "cosh", "tanh")},
    "lg": "lg", "abs": "abs", "tg": "tan", "ctg": "cot", "arctg": "arctan",
}  # fmt: skip
LISTED_FUNCTIONS = frozenset({"max", "min", "gcd", "lcm"})
# fmt: off
SYMBOLS = frozenset("\\" + name for name in (
    "alpha", "beta", "gamma", "delta", "epsilon", "varepsilon", "zeta", "eta", "theta", "vartheta", "iota", "kappa",
    "lambda", "mu", "nu", "xi", "rho", "varrho", "sigma", "tau", "upsilon", "phi", "varphi", "chi", "psi", "omega",
    "Gamma", "Delta", "Theta", "Lambda", "Xi", "Pi", "Sigma", "Upsilon", "Phi", "Psi", "Omega", "ell", "hbar", "infty",
))
# fmt: on
DECORATIONS = frozenset(
    "\\" + name for name in ("vec", "hat", "bar", "tilde", "overline", "dot", "mathcal", "mathbb", "mathfrak", "widehat")
)
_WORDS = frozenset({*FUNCTIONS, *LISTED_FUNCTIONS, "sqrt", "pi"})
_SET_AS_WORD = re.compile(r"\\text\s*\{\s*([A-Za-z]+)\s*\}")


class NotUnderstood(Exception):
    """A text, or a part of it, is none of the formulas known here."""


def tokens_of(text: str) -> list[str]:
    """Cut a text up. A run of letters is a function's name, or each letter stands for itself.

    Raises:
        NotUnderstood: something is none of these, or there is too much of it.
    """
    if not text or len(text) > MAX_CHARACTERS:
        raise NotUnderstood
    if "\\text" in text:  # functions and single letters set upright are what they are
        text = _SET_AS_WORD.sub(lambda match: _plain_word(match[1], match[0]), text)
    tokens: list[str] = []
    position, end = 0, len(text.rstrip())
    while position < end:
        match = _TOKEN.match(text, position)
        if match is None or len(tokens) > MAX_TOKENS:
            raise NotUnderstood
        word = match[3]
        if word is None or word in _WORDS:
            tokens.append(match[1] or match[2] or word or match[4])
        else:
            tokens.extend(word)
        position = match.end()
    if any(token.removeprefix("\\") in LISTED_FUNCTIONS for token in tokens):  # a comma stands between its arguments
        tokens = [part for token in tokens for part in (re.split("(,)", token) if is_number(token) else [token])]
    return tokens


def is_number(token: str) -> bool:
    return token[:1].isdigit() or token[:1] == "."


def is_letter(token: str) -> bool:
    return len(token) == 1 and token.isalpha()


def _plain_word(word: str, written: str) -> str:
    return f" {word} " if len(word) == 1 or word in _WORDS else written
