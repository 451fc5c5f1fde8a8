r"""Multiple choice: a reference that is an option's letter, answered by `B`, `(B)`, `\text{B}` or `B) 5 cm`.

The reference may be several letters (`A, C`), or a letter with its text (`B) 5 cm`), which is then another right answer.
"""

from __future__ import annotations

import re

_REFERENCE = re.compile(r"\(?([A-J])[).:]?")
_SEVERAL = re.compile(r"[A-J](?:\s*(?:,|;|and|&)\s*[A-J])+|[A-J]{2,}")
_WRAPPER = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathbb|mathcal|boldsymbol)\s*\{([^{}]*)\}")
_SPACE = re.compile(r"(?:\\[,;: !]|~|\\q?quad(?![A-Za-z])|\s)+")
_OPTION = re.compile(r"(?:^|(?<=[\s(]))([A-J])(?=[).:])")
_LETTER_AND_TEXT = re.compile(r"\(?([A-J])[).:]\s*(\S.*)", re.DOTALL)
_BRACKETED = re.compile(r"\(([A-J])\)")
_CALLED = re.compile(r"(?:[Tt]he )?(?:(?:[Cc]orrect )?(?:[Aa]nswer|[Oo]ption|[Cc]hoice)(?: is)?:?\s+){1,2}")
_LOWER = re.compile(r"\(([a-j])\)|([a-j])\)")


def choice_agrees(reference: str, answer: str) -> bool:
    """Whether the reference is an option's letter and the answer names that option, and no other.

    False decides nothing: a letter may also be a symbol, which is for the general comparison to judge.
    """
    wanted = _REFERENCE.fullmatch(reference)
    if wanted is None:
        return _several_agree(reference, answer) or _with_text_agrees(reference, answer)
    return _names_only(_plain(answer), wanted[1])


def choice_differs(reference: str, answer: str) -> bool:
    """Whether the reference can only be an option (a letter in brackets or with its text) and the answer names another."""
    wanted = _LETTER_AND_TEXT.fullmatch(_plain(reference)) or _BRACKETED.fullmatch(_plain(reference))
    if wanted is None:
        return False
    plain = _CALLED.sub("", _plain(answer), count=1)
    named = set(_OPTION.findall(plain)) | ({plain} if re.fullmatch("[A-J]", plain) else set())
    return bool(named - {wanted[1]})


def _names_only(plain: str, letter: str) -> bool:
    plain = _CALLED.sub("", plain, count=1)
    given = _REFERENCE.fullmatch(plain)
    if given is not None:
        return given[1] == letter
    lower = _LOWER.fullmatch(plain)
    if lower is not None:
        return (lower[1] or lower[2]).upper() == letter
    begins = re.match(r"\(?([A-J])[).:]", plain)
    return begins is not None and begins[1] == letter and set(_OPTION.findall(plain)) == {letter}


def _several_agree(reference: str, answer: str) -> bool:
    plain = _plain(answer)
    if _SEVERAL.fullmatch(reference) is None or _SEVERAL.fullmatch(plain) is None:
        return False
    if "," not in reference and "," not in plain and "and" not in reference + plain:
        return False  # AB and BA may be segments
    return set(re.findall("[A-J]", reference)) == set(re.findall("[A-J]", plain))


def _with_text_agrees(reference: str, answer: str) -> bool:
    parts = _LETTER_AND_TEXT.fullmatch(_plain(reference))
    if parts is None:
        return False
    plain = _plain(answer)
    return _names_only(plain, parts[1]) or plain.casefold() == parts[2].strip().casefold()


def _plain(text: str) -> str:
    return _SPACE.sub(" ", _WRAPPER.sub(r"\1", text)).strip(" {}*")
