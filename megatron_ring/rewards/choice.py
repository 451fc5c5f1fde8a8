r"""Multiple choice: a reference that is one capital letter, answered by `B`, `(B)`, `\text{B}` or `B) 5 cm`."""

from __future__ import annotations

import re

_REFERENCE = re.compile(r"\(?([A-J])[).:]?")
_WRAPPER = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\s*\{([^{}]*)\}")
_OPTION = re.compile(r"(?:^|(?<=[\s(]))([A-J])(?=[).:])")


def choice_agrees(reference: str, answer: str) -> bool:
    """Whether the reference is an option's letter and the answer names that option, and no other.

    False decides nothing: a letter may also be a symbol, which is for the general comparison to judge.
    """
    wanted = _REFERENCE.fullmatch(reference)
    if wanted is None:
        return False
    plain = _WRAPPER.sub(r"\1", answer).strip()
    given = _REFERENCE.fullmatch(plain)
    if given is None:
        options = _OPTION.findall(plain)
        begins = re.match(r"\(?([A-J])[).:]", plain)
        return begins is not None and begins[1] == wanted[1] and set(options) == {wanted[1]}
    return given[1] == wanted[1]
