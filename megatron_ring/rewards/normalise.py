r"""One spelling for what LaTeX and Unicode let one write in many ways, so that later steps see few forms.

The result is still LaTeX, for `formula` and `structure` to read. Everything here is linear in the text, or nearly.
"""

from __future__ import annotations

import re
import unicodedata

_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
_SIGNS: dict[int, int | str] = {
    **_FULL_WIDTH,
    **{ord(dash): "-" for dash in "\u2010\u2011\u2012\u2013\u2212\ufe63"},
    **{ord(nothing): "" for nothing in "\u200b\u200c\u200d\u2060\ufeff\x00"},
}
# fmt: off
_SYMBOLS = str.maketrans({
    "π": r"\pi ", "√": r"\sqrt ", "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "⩽": r"\le ", "⩾": r"\ge ", "≠": r"\ne ",
    "≈": r"\approx ", "∀": r"\forall ", "ℤ": r"\mathbb{Z} ", "ℝ": r"\mathbb{R} ", "ℕ": r"\mathbb{N} ", "ℚ": r"\mathbb{Q} ",
    "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "×": r"\times ", "÷": r"\div ", "·": r"\cdot ", "⋅": r"\cdot ",
    "°": r"^{\circ}", "±": r"\pm ", "∅": r"\emptyset ", "⟨": "(", "⟩": ")", "⁄": "/", "θ": r"\theta ",
    "½": r"\frac{1}{2}", "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}",
    "⅕": r"\frac{1}{5}", "⅖": r"\frac{2}{5}", "⅗": r"\frac{3}{5}", "⅘": r"\frac{4}{5}", "⅙": r"\frac{1}{6}",
    "⅛": r"\frac{1}{8}", "⅜": r"\frac{3}{8}", "⅝": r"\frac{5}{8}", "⅞": r"\frac{7}{8}",
})
# fmt: on
# 1或2, 3、4: between what is mathematics; in words they stay.
_CHINESE_JOINING = re.compile(r"(?<=[!-~])\s{0,8}([或且和与及、])\s{0,8}(?=[!-~])")
_JOINED_BY = {"或": " or ", "、": ", "}
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ", "0123456789-+n")
_SUPERSCRIPT = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ]+")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉₊₋", "0123456789+-")
_SUBSCRIPT = re.compile("[₀₁₂₃₄₅₆₇₈₉₊₋]+")

_SIZE = re.compile(r"\\(?:left|right|middle|[bB]igg?[lrm]?)(?![A-Za-z])\s*\.?")
_STYLE = re.compile(r"\\(?:displaystyle|textstyle|scriptstyle|limits|nolimits|mathstrut|strut)(?![A-Za-z])")
_GROUPED_DIGITS = re.compile(r"(?<![\d.])\d{1,3}(?:(?:\\[,;: !]|~|\{,\})\d{3}){1,60}(?![\d])", re.ASCII)
_SPACED_INTEGER = re.compile(r"[+-]?\d{1,3}(?: \d{3}){1,60}(?:\.\d+)?", re.ASCII)
_SPACE = re.compile(r"(?<!\\)\\[,;: !]|~|\\(?:q?quad|enspace|thinspace|hspace\{[^{}]*\})(?![A-Za-z])|\s")
_RENAMED = re.compile(r"\\([A-Za-z]+)(?![A-Za-z])")
# fmt: off
_NAMES = {
    "dfrac": r"\frac", "tfrac": r"\frac", "cfrac": r"\frac", "leq": r"\le", "leqslant": r"\le", "geq": r"\ge",
    "geqslant": r"\ge", "lt": "<", "gt": ">", "neq": r"\ne", "lbrace": r"\{", "rbrace": r"\}", "lbrack": "[",
    "rbrack": "]", "langle": "(", "rangle": ")", "dbinom": r"\binom", "tbinom": r"\binom", "varnothing": r"\emptyset",
    "textrm": r"\text", "textbf": r"\text", "textit": r"\text", "textnormal": r"\text", "mbox": r"\text",
    "textsf": r"\text", "texttt": r"\text", "mathrm": r"\text", "operatorname": r"\text", "unit": r"\text",
    "mathbf": "", "boldsymbol": "", "bm": "", "mathit": "", "mathsf": "", "hfill": "", "lor": " or ", "vee": " or ",
    "mathbin": "", "mathop": "", "pmb": "", "ensuremath": "", "emph": r"\text", "hbox": r"\text", "checkmark": "",
    "underline": "", "fbox": "", "framebox": "", "large": "", "Large": "", "LARGE": "", "huge": "", "Huge": "", "rm": "",
    "bf": "", "it": "", "displaylines": "", "rightarrow": r"\to",
    "Z": r"\mathbb{Z}", "ZZ": r"\mathbb{Z}", "N": r"\mathbb{N}", "R": r"\mathbb{R}", "RR": r"\mathbb{R}",
    "lvert": "|", "rvert": "|", "vert": "|", "thickapprox": r"\approx", "simeq": r"\approx",
    "mod": r"\pmod", "bmod": r"\pmod", "ce": r"\text",
    "percent": r"\%", "degree": r"^{\circ}", "degrees": r"^{\circ}",
}
# fmt: on
_MAX_INFIX = 8
_INFIX_NAMES = {"choose": r"\binom", "over": r"\frac"}
_DEGREE = re.compile(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![A-Za-z]))")
_JOINING = re.compile(r"\\text\s*\{\s*,?\s*(or|and)\s*\}|(?<=[\s\d})\]])(or|and)(?=[\s\d\\(\[{])")
_NEGATED = re.compile(r"\\not(?![A-Za-z])\s*(=|\\in(?![A-Za-z]))")
_SEGMENT = re.compile(r"\\(?:overline|overleftrightarrow)\s*\{\s*([A-Z]{2})\s*\}")
# Colours and boxes around an answer, with the arguments that are no part of it.
_WRAPPER = re.compile(
    r"\\(?:textcolor|color|colorbox|fcolorbox\s*\{[^{}]*\})\s*(?:\[[^\[\]]*\])?\s*\{[^{}]*\}|\\bbox\s*\[[^\[\]]*\]"
    r"|\\(?:tag|label|phantom|hphantom|vphantom)\*?\s*\{[^{}]*\}"
)
_INFIX = re.compile(r"\\(choose|over)(?![A-Za-z])")
_IN_DOLLARS = re.compile(r"\{\s*\$([^$]*)\$\s*\}")
_BARE_TEXT = re.compile(r"\\text ([A-Za-z])(?![A-Za-z])")  # \mathrm W
_BARE_MODULUS = re.compile(r"\\(pmod|mod|bmod) ?(\d+)")
_BARE_SET = re.compile(r"\\mathbb\s*([A-Z])(?![A-Za-z])|\\mathbb\s*\{\s*([A-Z])\s*\}")
_ALIGNED = re.compile(r"(\\(?:begin|end)\s*\{)(?:aligned|alignedat|align|gathered|gather|split|dcases|rcases|cases)\*?(\})")
_MATRIX_KIND = re.compile(r"(\\(?:begin|end)\s*\{)(?:bmatrix|pmatrix|smallmatrix|matrix|array)(\})(?:\{[clr| ]*\})?")
_DEFINITION = re.compile(
    r"\\(?:def|edef|gdef|xdef|let|newcommand|renewcommand|providecommand|newenvironment|DeclareMathOperator|input|include"
    r"|usepackage|openin|openout|read|write|immediate|csname|catcode|loop|repeat|expandafter|special|directlua)(?![A-Za-z])"
)
_BRACKET = re.compile(r"[(\[{]|[)\]}]")


def clean(text: str) -> str:
    r"""Drop what never changes an answer: outer spaces and `$`, `\$`, `\!`, a final full stop, line breaks.

    Digits of other scripts and full-width characters become ASCII, dashes that stand for a minus become one.
    """
    if not text.isascii():
        text = "".join(map(_ascii_digit, text.translate(_SIGNS)))
    if "\\" in text or "{" in text:
        text = text.replace("\\$", "").replace("\\!", "").replace("{,}", ",")
    text = without_stop(" ".join(text.split()).strip(" $"))
    if text[:2] == text[-2:] == "**" and "*" not in text[2:-2]:
        text = text[2:-2].strip()
    if text[:2] in ("\\[", "\\(") and text[-2:] in ("\\]", "\\)"):
        text = text[2:-2].strip()
    return text


def normalise(text: str) -> str:
    """An answer in our spelling of LaTeX: no sizes, styles or special spaces, one name for each command."""
    text = _GROUPED_DIGITS.sub(lambda match: "".join(re.findall(r"\d", match[0])), text)
    text = clean(text)
    if not text.isascii():
        text = _CHINESE_JOINING.sub(lambda match: _JOINED_BY.get(match[1], " and "), text)
        text = _SUPERSCRIPT.sub(lambda match: "^{" + match[0].translate(_SUPERSCRIPTS) + "}", text)
        text = _SUBSCRIPT.sub(lambda match: "_{" + match[0].translate(_SUBSCRIPTS) + "}", text)
        text = re.sub("√(\\d+)", r"\\sqrt{\1}", text).translate(_SYMBOLS)
    if "\\" in text:
        text = _STYLE.sub("", _SIZE.sub("", text))
        text = _IN_DOLLARS.sub(r"{\1}", _WRAPPER.sub("", text))
        text = _MATRIX_KIND.sub(r"\1matrix\2", _ALIGNED.sub(r"\1cases\2", text))
        text = _SPACE.sub(" ", text)
        text = _RENAMED.sub(lambda match: _NAMES.get(match[1], match[0]), text)
        text = _DEGREE.sub(r"^{\\circ}", text)
        text = _SEGMENT.sub(r"\1", text)
        text = _BARE_TEXT.sub(r"\\text{\1}", text)
        text = _BARE_SET.sub(lambda match: rf"\mathbb{{{match[1] or match[2]}}}", text)
        text = _BARE_MODULUS.sub(r"\\\1{\2}", _without_infix(text))
    text = _NEGATED.sub(lambda match: r"\ne " if match[1] == "=" else r"\notin ", text)
    text = _JOINING.sub(lambda match: f" {match[1] or match[2]} ", text)
    text = without_stop(" ".join(text.split()).strip(" $"))
    if _SPACED_INTEGER.fullmatch(text):
        text = text.replace(" ", "")
    return text


def without_stop(text: str) -> str:
    """Without the full stop at its end. Several are an ellipsis, which says that more follows."""
    return text if text.endswith("..") else text.removesuffix("。").removesuffix(".").rstrip()


def _without_infix(text: str) -> str:
    r"""With `\binom{n}{k}` for `{n \choose k}`, and `\frac` for `\over`."""
    for _ in range(_MAX_INFIX):
        match = _INFIX.search(text)
        if match is None:
            break
        start, depth = match.start(), 0
        while start > 0 and depth >= 0:
            start -= 1
            depth += {"}": 1, "{": -1}.get(text[start], 0)
        inside = depth < 0
        end = closes_at(text, start) if inside else len(text)
        top, bottom = text[start + 1 if inside else 0 : match.start()], text[match.end() : end]
        if end < 0:
            break
        text = text[: start if inside else 0] + f"{_INFIX_NAMES[match[1]]}{{{top}}}{{{bottom}}}" + text[end + 1 :]
    return text


def unwrap(text: str) -> str:
    r"""The text inside `\text{…}`, `{…}` or `\mathbf{…}` where that is the whole of it."""
    while True:
        inner = text.removeprefix("\\text").strip() if text.startswith("\\text") else text
        if not (inner.startswith("{") and closes_at(inner, 0) == len(inner) - 1):
            return text
        text = inner[1:-1].strip()


def closes_at(text: str, start: int) -> int:
    """Index of the bracket that closes the one at `start`; -1 when none does. Brackets of any kind match each other."""
    depth = 0
    for match in _BRACKET.finditer(text, start):
        depth += 1 if match[0] in "([{" else -1
        if depth == 0:
            return match.start()
    return -1


def nesting(text: str) -> int:
    """The greatest depth of brackets and braces."""
    depth = deepest = 0
    for match in _BRACKET.finditer(text):
        depth += 1 if match[0] in "([{" else -1
        deepest = max(deepest, depth)
    return deepest


def defines_macros(text: str) -> bool:
    r"""Whether the text programs TeX (`\def`, `\input`, …) instead of stating an answer."""
    return _DEFINITION.search(text) is not None


def without_spaces(text: str) -> str:
    """For comparison: no spaces, save between two digits (1 1/2 is not 11/2) or two letters (words)."""
    return re.sub(r"(?<![A-Za-z0-9]) | (?![A-Za-z0-9])|(?<=[A-Za-z]) (?=\d)|(?<=\d) (?=[A-Za-z])", "", text)


def _ascii_digit(character: str) -> str:
    digit = -1 if character.isascii() else unicodedata.decimal(character, -1)
    return character if digit < 0 else str(digit)
