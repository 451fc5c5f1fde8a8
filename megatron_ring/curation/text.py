r"""One spelling for texts that say the same: what duplicates and benchmark overlap are compared by. No row is changed here.

A text becomes tokens: words in small letters, numbers, LaTeX commands, Chinese characters one by one, and the signs that
carry meaning. White space, `$`, sizes and styles of LaTeX, other punctuation and the number of an exercise are left out.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping
from typing import Any

CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
_SIGNS = str.maketrans({
    "−": "-", "–": "-", "—": "-", "‐": "-", "‑": "-", "×": "*", "·": "*", "⋅": "*", "∗": "*", "÷": "/", "≤": "<=",
    "≥": ">=", "≠": r" \ne ", "π": r" \pi ", "√": r" \sqrt ", "∞": r" \infty ", "∠": r" \angle ", "°": r" \circ ",
    "’": "'", "‘": "'", "“": '"', "”": '"', "，": ",", "。": ".", "\u200b": "", "\ufeff": "", "\u00ad": "",
})  # fmt: skip
_INVISIBLE = re.compile(
    r"\\(?:left|right|[bB]igg?[lrm]?|displaystyle|textstyle|limits|nolimits|q?quad|[hv]space\*?\{[^{}]*\})(?![A-Za-z])"
    r"|\\[,;:! ]|\\[()\[\]]|[$~]"
)
_STYLE = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|normal)?|math(?:rm|bf|it|sf|normal)|operatorname\*?|mbox|emph|boldsymbol|bm)\s*(?=\{)"
)
_NAMES = {
    "dfrac": r"\frac", "tfrac": r"\frac", "cfrac": r"\frac", "cdot": "*", "times": "*", "ast": "*", "div": "/",
    "leq": "<=", "le": "<=", "leqslant": "<=", "geq": ">=", "ge": ">=", "geqslant": ">=", "lt": "<", "gt": ">",
    "neq": r"\ne", "degree": r"\circ", "ldots": "", "cdots": "", "dots": "", "lbrace": "{", "rbrace": "}", "mid": "|",
    "vert": "|", "lvert": "|", "rvert": "|", "to": r"\rightarrow",
}  # fmt: skip
_COMMAND = re.compile(r"\\([A-Za-z]+)")
_SHORT_FRACTION = re.compile(r"\\frac\s*(\d)\s*(\d)(?!\d)")
_ONE_TOKEN = re.compile(r"\{\s*(\\?[A-Za-z]+|\d+(?:\.\d+)?)\s*\}")
_GROUPED = re.compile(r"(?<![\d.,])\d{1,3}(?:(?:\{,\}|\\,|,)\d{3})+(?!\d)")
_GROUP = re.compile(r",\}?\d{3}")  # none of the above without it
_HYPHEN = re.compile(r"(?<=[^\W\d_])-+(?=[^\W\d_])|(?<=\s)-+(?=\s[^\W\d_]{2})")
_TOKEN = re.compile(
    rf"\\[a-z]+|[{CJK}]|\d+(?:\.\d+)?|(?<!\w)\.\d+|[^\W\d_{CJK}]+|<=|>=|(?<![^\W\d_]{{2}})'(?![^\W_])|[-+*/=<>^_!%|()\[\]{{}}&]"
)
# The same for ASCII, where words come first.
_ASCII_TOKEN = re.compile(
    r"[a-z]+|\d+(?:\.\d+)?|(?<!\w)\.\d+|\\[a-z]+|<=|>=|(?<![a-z]{2})'(?![a-z0-9])|[-+*/=<>^_!%|()\[\]{}&]"
)
_LABEL = re.compile(
    r"\s*\**(?:(?:problem|question|exercise|example|task)\s*#?\s*\d+(?:\.\d+)*\s*(?:[.:)\]]+|\n)|\d{1,3}\s*[.)、．]\s+|\(\d{1,3}\)\s+"
    r"|\[\d{1,3}\]\s+|【[^】\n]{1,8}】|(?:例|题)\s*\d+\s*[.、．:：]?)\**\s*",
    re.IGNORECASE,
)
_POINTS = re.compile(r"\s*[(\[（](?:worth )?\d+ ?(?:points?|pts?|marks?|分)[)\]）]\s*", re.IGNORECASE)


def without_label(text: str) -> str:
    """The text without the number of an exercise and its points, `Problem 3.` or `12. (10 points)`, at its beginning."""
    label = _LABEL.match(text)
    rest = text[label.end() :] if label else text
    points = _POINTS.match(rest)
    rest = rest[points.end() :] if points else rest
    return rest if rest.strip() else text


def words(text: str) -> list[str]:
    """The tokens of a text, see the module. At most one for each of its characters."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text.translate(_SIGNS))
    text = without_label(text)
    if "," in text and _GROUP.search(text):
        text = _GROUPED.sub(lambda match: re.sub(r"\D", "", match[0]), text)
    if "\\" in text or "$" in text or "{" in text:
        text = _STYLE.sub("", _INVISIBLE.sub(" ", text))
        text = _COMMAND.sub(_renamed, text)
        text = _ONE_TOKEN.sub(r" \1 ", _SHORT_FRACTION.sub(r"\\frac \1 \2 ", text))
    if "-" in text:
        text = _HYPHEN.sub(" ", text)
    return _ASCII_TOKEN.findall(text.lower()) if text.isascii() else _TOKEN.findall(text.casefold())


def _renamed(match: re.Match[str]) -> str:
    return f" {_NAMES.get(match[1], match[0])} "


def latex_share(text: str) -> float:
    """The share of a text's characters that are LaTeX, Chinese, Japanese or Korean, from 0 to 1."""
    marked = sum(map(len, _MARKED.findall(without_prices(text))))
    return min(1.0, marked / len(text)) if marked else 0.0


_MARKED = re.compile(rf"\\[A-Za-z]+|\$[^$\n]{{1,200}}\$|[{CJK}]+|[\\^_{{}}]")
_PRICE = re.compile(r"\$\d[\d,]*(?:\.\d+)?(?![\d,.]*\s*[$\\^_=+*/<>{}]|\w|\s*[b-zB-Z]\b)")
_TYPOGRAPHY = str.maketrans("", "", "…‘’“”–—£€¢")


def without_prices(text: str) -> str:
    """A text without amounts such as $5 or $1,200.50, whose `$` begins no formula."""
    return _PRICE.sub("", text) if "$" in text else text


def is_english_script(text: str) -> bool:
    """Whether a text is of ASCII, quotation marks, dashes, ellipses and signs of money."""
    return text.isascii() or text.translate(_TYPOGRAPHY).isascii()


def problem_key(row: Mapping[str, Any]) -> str:
    """What rows with the same problem have in common, and what they may call and have called."""
    called = calls_text(row)
    return " ".join(words(prompt_text(row["prompt"]))) + (f"\n{called}" if called else "")


def calls_text(row: Mapping[str, Any]) -> str:
    """What a row's prompt may call, and what its turns have called; "" for neither. The same words with others of them are
    another problem."""
    prompt = row["prompt"] if isinstance(row["prompt"], list) else []
    calls = [message["tool_calls"] for message in prompt if isinstance(message, dict) and message.get("tool_calls")]
    return "".join(json.dumps(part, sort_keys=True) for part in (row.get("tools"), calls) if part)


def prompt_text(prompt: object) -> str:
    """What a prompt says: its text, or its messages one after another."""
    if isinstance(prompt, str):
        return prompt
    if not isinstance(prompt, list):
        return ""
    texts = (message.get("content") for message in prompt if isinstance(message, dict))
    return "\n".join(text for text in texts if isinstance(text, str))
