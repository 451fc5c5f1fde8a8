"""Which language a text is in, by langdetect with a fixed seed."""

from __future__ import annotations

import functools
from typing import Any

# What langdetect knows, and `zh` for both ways to write Chinese. Listed, so that reading a reference loads no profiles.
_CODES = (
    "af ar bg bn ca cs cy da de el en es et fa fi fr gu he hi hr hu id it ja kn ko lt lv mk ml mr ne nl no pa pl pt ro ru"
    " sk sl so sq sv sw ta te th tl tr uk ur vi zh zh-cn zh-tw"
)
LANGUAGES = frozenset(_CODES.split())

# What langdetect itself reads of a text.
_CHARACTERS = 10_000
_WINDOWS = 10
_SEED = 0


def detect_language(text: str) -> str | None:
    """The ISO 639-1 code (`zh-cn` and `zh-tw` for Chinese) that langdetect finds most likely.

    None where it finds no trace of any, as in a text of digits. Of a text longer than 10,000 characters ten windows that
    are spread over it are read, not its beginning alone, so that no other language can follow unseen. langdetect skips
    words in capitals, so a text in capitals is read in lower case.
    """
    detector = _factory().create()
    from langdetect.lang_detect_exception import LangDetectException

    detector.append((text.lower() if text.isupper() else text) if len(text) <= _CHARACTERS else _windows(text))
    try:
        found = str(detector.detect())
    except LangDetectException:
        return None
    return None if found == "unknown" else found


def is_language(found: str | None, wanted: str) -> bool:
    """Whether a detected code is the wanted one; `zh` takes both ways to write Chinese."""
    return found is not None and (found == wanted or found.partition("-")[0] == wanted)


def _windows(text: str) -> str:
    size = _CHARACTERS // _WINDOWS
    step = (len(text) - size) / (_WINDOWS - 1)
    sample = " ".join(text[round(step * index) : round(step * index) + size] for index in range(_WINDOWS))
    return sample.lower() if text.isupper() else sample


@functools.cache
def _factory() -> Any:
    """A factory of our own: langdetect's is shared, and so would be its seed."""
    from langdetect.detector_factory import PROFILES_DIRECTORY, DetectorFactory

    factory = DetectorFactory()
    factory.load_profile(PROFILES_DIRECTORY)
    factory.set_seed(_SEED)
    return factory
