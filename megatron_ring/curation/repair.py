r"""Repairs of texts: what is changed and never dropped. Mojibake and HTML entities (ftfy), LaTeX whose backslashes were read
as escapes (a form feed before `rac{`), tags of HTML, and the instructions that a data set wraps around its problems."""

from __future__ import annotations

import re

from megatron_ring.curation.guarded import folded

# `\f`, `\b`, `\t`, `\r` of LaTeX commands that a reader of escapes has eaten.
_EATEN = re.compile(
    "\x0c(?=rac|orall|lo|box)|\x08(?=egin|inom|eta|ar|oxed|ig|oldsymbol|mod|ullet)|\t(?=imes|ext|heta|frac|riangle|ilde)"
    "|\r(?=ight|ho\\b|angle|ceil|floor)"
)
_ESCAPES = {"\x0c": "\\f", "\x08": "\\b", "\t": "\\t", "\r": "\\r"}
_ENTITY = re.compile(r"&(?:[A-Za-z]{2,8}|#\d{1,6}|#x[0-9A-Fa-f]{1,6});")
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_INVISIBLE = re.compile("[\u200b\u2060\u00ad\ufeff]")
_BREAK = re.compile(r"<br\s*/?>|</p>|</div>|</li>", re.IGNORECASE)
_TAG = re.compile(
    r"</?(?:p|div|span|b|i|u|em|strong|font|center|li|ul|ol|h[1-6]|tt|code|blockquote)(?:\s[^<>]{0,200})?/?>", re.IGNORECASE
)
_SPACE = re.compile(r"[^\S\n]+$", re.MULTILINE)
_BLANK = re.compile(r"\n{3,}")
_PREFIX = re.compile(
    r"Solve the following math problem step by step\. The last line of your response should be of the form Answer: \$?Answer"
    r"[^\n]{0,120}\n+",
    re.IGNORECASE,
)
_SUFFIX = re.compile(
    r'\s*(?:Remember to put your answer on its own line after "Answer:"\.?'
    r"|(?:Let's think step by step|Please reason step by step|Think step by step|Please think step by step)"
    r'[^\n]{0,40}(?:final answer)[^\n]{0,40}(?:\\boxed\{\}|\\boxed|"####"|####)[^\n]{0,20}'
    r"|(?:Please )?(?:put|output|present|give|write|provide|return|place) (?:your|the) (?:final )?answer "
    r"(?:with)?in \$?\\+boxed\{\}\$?\.?)\s*\Z",
    re.IGNORECASE,
)


def repaired(text: str, markup: bool = True) -> tuple[str, list[str]]:
    """A text made whole, and what was done to it.

    Args:
        markup: whether tags of HTML are taken out, which in problems about code may be part of the problem.
    """
    if text.isalnum() and text.isascii():  # such as most answers
        return text, []
    done: list[str] = []

    def changed(to: str, what: str) -> None:
        nonlocal text
        if to != text:
            text = to
            done.append(what)

    changed(_EATEN.sub(lambda match: _ESCAPES[match[0]], text), "eaten_backslash")
    changed(_INVISIBLE.sub("", text), "unicode") if not text.isascii() else None
    if not text.isascii() or _ENTITY.search(text) or _CONTROL.search(text):
        import ftfy

        changed(ftfy.fix_text(text, uncurl_quotes=False, fix_latin_ligatures=True), "unicode")
    if markup and "<" in text:
        changed(_TAG.sub("", _BREAK.sub("\n", text)), "html")
    if "answer" in folded(text):
        unwrapped = _SUFFIX.sub("", _PREFIX.sub("", text, count=1), count=1)
        if unwrapped.strip():
            changed(unwrapped, "instruction")
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if "\n" in text:
        text = _BLANK.sub("\n\n", _SPACE.sub("", text))
    return text.strip(), done
