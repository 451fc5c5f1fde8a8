r"""One spelling for texts that say the same: what duplicates and benchmark overlap are compared by. Nothing here changes a row.

A text becomes tokens: words in small letters, numbers, LaTeX commands, Chinese characters one by one, and the signs that
carry meaning. White space, `$`, sizes and styles of LaTeX, other punctuation and the number of an exercise are left out.
"""  # noqa: E501

from __future__ import annotations

import re
import unicodedata

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
_HYPHEN = re.compile(r"(?<=[^\W\d_])-+(?=[^\W\d_])|(?<=\s)-+(?=\s[^\W\d_]{2})")
_TOKEN = re.compile(
    rf"\\[a-z]+|[{CJK}]|\d+(?:\.\d+)?|(?<!\w)\.\d+|[^\W\d_{CJK}]+|<=|>=|(?<![^\W\d_]{{2}})'(?![^\W_])|[-+*/=<>^_!%|()\[\]{{}}&]"
)
_LABEL = re.compile(
    r"\s*\**(?:(?:problem|question|exercise|example|task)\s*#?\s*\d+(?:\.\d+)*\s*(?:[.:)\]]+|\n)|\d{1,3}\s*[.)、．]\s+|\(\d{1,3}\)\s+"
    r"|\[\d{1,3}\]\s+|【[^】\n]{1,8}】|(?:例|题)\s*\d+\s*[.、．:：]?)\**\s*",
    re.IGNORECASE,
)
_POINTS = re.compile(r"\s*[(\[（](?:worth )?\d+ ?(?:points?|pts?|marks?|分)[)\]）]\s*", re.IGNORECASE)

_SMALL = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
]
NUMBER_WORDS = {word: str(value) for value, word in enumerate([*_SMALL, "seventeen", "eighteen", "nineteen", "twenty"])}
NUMBER_WORDS |= {"thirty": "30", "forty": "40", "fifty": "50", "sixty": "60", "seventy": "70", "eighty": "80",
                 "ninety": "90", "hundred": "100", "thousand": "1000", "million": "1000000", "half": "1/2",
                 "twice": "2", "double": "2", "doubles": "2", "doubled": "2", "triple": "3", "triples": "3", "tripled": "3",
                 "thrice": "3", "quarter": "1/4", "quarters": "1/4", "third": "1/3", "thirds": "1/3", "dozen": "12",
                 "dozens": "12", "pair": "2", "couple": "2"}  # fmt: skip
# Words that turn a question into another one. Two texts in which they differ ask different things.
TURNING = frozenset(
    [
        "most",
        "least",
        "maximum",
        "minimum",
        "max",
        "min",
        "maximal",
        "minimal",
        "largest",
        "smallest",
        "greatest",
        "highest",
        "lowest",
        "biggest",
        "longest",
        "shortest",
        "more",
        "less",
        "fewer",
        "larger",
        "smaller",
        "greater",
        "higher",
        "lower",
        "bigger",
        "longer",
        "shorter",
        "older",
        "younger",
        "faster",
        "slower",
        "taller",
        "increase",
        "increases",
        "increased",
        "decrease",
        "decreases",
        "decreased",
        "odd",
        "even",
        "sum",
        "difference",
        "product",
        "quotient",
        "remainder",
        "ratio",
        "before",
        "after",
        "left",
        "right",
        "not",
        "no",
        "never",
        "without",
        "inside",
        "outside",
        "positive",
        "negative",
        "first",
        "last",
        "next",
        "previous",
        "area",
        "perimeter",
        "volume",
        "surface",
        "radius",
        "diameter",
        "circumference",
        "square",
        "cube",
        "squared",
        "cubed",
        "prime",
        "composite",
        "mean",
        "median",
        "mode",
        "range",
        "profit",
        "loss",
        "buy",
        "buys",
        "bought",
        "sell",
        "sells",
        "sold",
        "earn",
        "earns",
        "spend",
        "spends",
        "spent",
        "save",
        "saves",
        "above",
        "below",
        "day",
        "days",
        "week",
        "weeks",
        "month",
        "months",
        "year",
        "years",
        "hour",
        "hours",
        "minute",
        "minutes",
        "second",
        "seconds",
        "inscribed",
        "circumscribed",
        "add",
        "subtract",
        "multiply",
        "divide",
        "union",
        "intersection",
        "rows",
        "columns",
        "\\sin",
        "\\cos",
        "\\tan",
        "\\cot",
        "\\sec",
        "\\csc",
        "\\log",
        "\\ln",
        "\\max",
        "\\min",
        "\\sum",
        "\\prod",
        "\\int",
        "\\cup",
        "\\cap",
        "\\in",
        "\\notin",
        "\\exists",
        "\\forall",
        "\\sqrt",
        "\\frac",
        "\\pm",
        "\\mp",
    ]
)
_OPERATORS = frozenset("+-*/=<>^!%|") | {"<=", ">="}


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
    if "," in text:
        text = _GROUPED.sub(lambda match: re.sub(r"\D", "", match[0]), text)
    if "\\" in text or "$" in text or "{" in text:
        text = _STYLE.sub("", _INVISIBLE.sub(" ", text))
        text = _COMMAND.sub(_renamed, text)
        text = _ONE_TOKEN.sub(r" \1 ", _SHORT_FRACTION.sub(r"\\frac \1 \2 ", text))
    return _TOKEN.findall(_HYPHEN.sub(" ", text).casefold())


def _renamed(match: re.Match[str]) -> str:
    return f" {_NAMES.get(match[1], match[0])} "


def meaning(tokens: list[str]) -> str:
    """What must be the same in two texts that ask the same: their numbers, in order, and how often each sign of arithmetic and
    each word of `TURNING` comes. Number words count as numbers."""  # noqa: E501
    numbers, rest = [], []
    for token in tokens:
        if token[0].isdigit() or token[0] == ".":
            numbers.append(_number(token))
        elif token in NUMBER_WORDS:
            numbers.append(NUMBER_WORDS[token])
        elif token in TURNING or token in _OPERATORS:
            rest.append(token)
    rest.sort()
    return " ".join(numbers) + "|" + " ".join(rest)


def _number(token: str) -> str:
    """3.0 is 3 and 007 is 7."""
    if "." in token:
        token = token.rstrip("0").removesuffix(".")
    return token.lstrip("0") or "0"


def latex_share(text: str) -> float:
    """The share of a text's characters that are LaTeX, Chinese, Japanese or Korean, from 0 to 1."""
    if not text:
        return 0.0
    marked = sum(map(len, _MARKED.findall(text)))
    return min(1.0, marked / len(text))


_MARKED = re.compile(rf"\\[A-Za-z]+|\$(?![\d.,]+ [a-z])[^$\n]{{1,200}}\$|[{CJK}]+|[\\^_{{}}]")


def prompt_text(prompt: object) -> str:
    """What a prompt says: its text, or its messages one after another."""
    if isinstance(prompt, str):
        return prompt
    if not isinstance(prompt, list):
        return ""
    texts = (message.get("content") for message in prompt if isinstance(message, dict))
    return "\n".join(text for text in texts if isinstance(text, str))
