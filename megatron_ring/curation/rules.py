"""Rules of cleansing that look at one problem. Each says why a row goes, or nothing. They are about problems with an answer
that is text: mathematics and science. docs/curation.md states each."""

from __future__ import annotations

import re
from typing import Any

from megatron_ring.curation.guarded import Guarded
from megatron_ring.curation.text import is_english_script, without_prices
from megatron_ring.rewards.boxed import last_boxed, marked_answer
from megatron_ring.rewards.math import differs, quick_compare

PLACEHOLDERS = frozenset({
    "n/a", "na", "null", "none", "nan", "unknown", "?", "??", "-", "--", "---", "...", "…", "tbd", "todo",
    "to be determined",
    "not found", "no answer", "no answer provided", "missing", "omitted", "see solution", "see above", "answer", "[deleted]",
    "[removed]", "deleted", "removed", "error", "undefined answer", "not provided", "not available", "#n/a", "<na>", "略",
    "无",
})  # fmt: skip
INVALID = re.compile("[\ufffd\ue000-\uf8ff\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufdd0-\ufdef\ufffe\uffff]")
_PICTURE = r"(?:figure|diagram|picture|image|graph|photo|illustration|drawing|sketch|chart)"
IMAGE = Guarded(
    rf"!\[[^\]\n]{{0,200}}\]\s*\(|<img\b|\\includegraphics|\[\s*(?:image|figure|diagram|img|picture)\s*(?:\d+|here|omitted)?\s*\]"
    rf"|\b(?:shown|pictured|depicted|illustrated|drawn|given|seen|indicated|marked|displayed)\s+(?:below\s+)?(?:in|on|by)\s+(?:the\s+)?"
    rf"(?:accompanying\s+|adjacent\s+|attached\s+|following\s+|above\s+|given\s+)?{_PICTURE}\b(?!\s+of\s+(?:the\s+)?(?:function|equation|\$?y\b|\$?f))"
    rf"|\b(?:the|this)\s+(?:accompanying|attached|following|adjacent|above|below)\s+{_PICTURE}\b"
    rf"|\b(?:see|refer\s+to|use|in|from|on)\s+the\s+{_PICTURE}\s*(?:below|above|shown|at\s+(?:the\s+)?(?:right|left)|to\s+the\s+(?:right|left)|,)"
    rf"|\b{_PICTURE}\s+(?:below|above|(?:at|to|on)\s+the\s+(?:right|left))\b|\bas\s+(?:is\s+)?shown\s+(?:below|above)\b|如图|下图|图中|图示",
    "![", "<img", "\\includegraphics", "img", "图", "figure", "diagram", "picture", "image", "graph", "photo",
    "illustration", "drawing", "sketch", "chart", "shown",
)  # fmt: skip
ASYMPTOTE = re.compile(r"\[asy\]|\\begin\{asy\}")
LINK = Guarded(r"https?://|\bwww\.[a-z0-9-]+\.|\]\(\s*/|<a\s+href", "http", "www.", "](", "<a")
_PROVE = Guarded(
    r"(?:(?<=[.!?:;)\n,])|^|(?<=\bthen)|(?<=\band)|(?<=\bto)|(?<=\bplease))\s*\(?[a-z]?\)?\s*(?:prove|show\s+that|demonstrate\s+that"
    r"|verify\s+that|disprove|show\s*:)\b|证明|求证",
    "prove", "show", "demonstrate", "verify", "证明", "求证",
)  # fmt: skip
_SENTENCE = re.compile(r"(?<=[.!?])\s+")
_ASKS = re.compile(
    r"\?|？|\b(?:find|determine|compute|calculate|evaluate|how\s+many|how\s+much|what\s+is|what\s+are)\b|求(?!证)",
    re.IGNORECASE,
)
_PART = re.compile(
    r"(?:(?<=[\s.?!:;,])|^)(?:\(\s*([a-d]|i{1,3}|iv|[1-4])\s*\)|([a-d]|[1-4])\)|(?:part|question)\s+([a-d]|[1-4])\s*[:.)])\s*",
    re.IGNORECASE | re.MULTILINE,
)
_ORDERS = (("a", "b", "c", "d"), ("i", "ii", "iii", "iv"), ("1", "2", "3", "4"))
_REQUEST = re.compile(
    r"\s*(?:then\s+|now\s+|also\s+)?(?:find|determine|compute|calculate|evaluate|prove|show|express|write|give|state|what|how|is|are|does|do|draw"
    r"|sketch|solve|simplify|factor|list|estimate|graph|explain|for\s+which|for\s+what|which|who|when|where|求|证明|写出|计算)",
    re.IGNORECASE,
)
_PARTS_OF_ANSWER = re.compile(r"\s*\(?\s*(?:a|i|1)\s*\)\s*\S.*?[\s,;]\(?\s*(?:b|ii|2)\s*\)\s*\S", re.IGNORECASE | re.DOTALL)
_CUT = re.compile(
    r"(?:[A-Za-z]\s?(?:\.\.\.|…)|\[\s*(?:truncated|\.\.\.|cut)\s*\]|<truncated>|\(truncated\)|[,(\[{\\;]|[a-z]-)\s*\Z"
)
_CUT_ENDS = tuple(".…]>),([{\\;-")  # what a match of it ends in, white space aside
_CUT_CHARACTERS = 200  # at the end of a text, where it is looked for
_UNFINISHED = frozenset({"the", "an", "and", "or", "of", "than", "that", "which", "if", "whose", "where"})
_FORMULA_SIGNS = re.compile(r"[\\=$]")
_REQUESTED = re.compile(
    r"[?？]|__|\b(?:find|determine|compute|calculate|evaluate|solve|simplify|express|factor|expand|give|list|state|write|name|estimate"
    r"|prove|show|what|how|round(?!-)|convert|count|draw|complete|arrange|order|identify|explain|describe|answer|choose|select|sketch|graph)\b",
    re.IGNORECASE,
)
_LONG_ENOUGH = 40  # characters of a story that asks something
_ANSWER_IS = Guarded(r"(?:final\s+)?answer\s*(?:is|:|=)\s*\**\s*\$?(?:\\boxed\{)?\s*", "answer")


def is_placeholder(text: str) -> bool:
    """Whether a text stands for one that is missing."""
    return text.strip().strip(".").strip().lower() in PLACEHOLDERS or (
        not any(map(str.isalnum, text)) and len(text.strip()) < 2
    )


def proof(text: str, answer: Any) -> str | None:
    """A request to prove something, and nothing that asks for a value."""
    said = str(answer).strip().strip(".").lower()
    if said in (
        "proof",
        "see proof",
        "proved",
        "proven",
        "q.e.d",
        "qed",
        "see the proof",
        "证明略",
        "\\blacksquare",
        "$\\blacksquare$",
    ):
        return f"the answer is {str(answer)[:40]!r}"
    found = _PROVE.search(text)
    if found is None:
        return None
    last = _SENTENCE.split(text.strip())[-1]
    alone = _PROVE.pattern.match(last) is not None and not _ASKS.search(last)
    return f"asks to {found[0].strip(' ().')}" if alone or not _ASKS.search(text) else None


def multi_part(text: str, answer: Any) -> str | None:
    """Several questions, (a) and (b), i and ii, 1 and 2, each of which asks; or an answer of several parts."""
    if isinstance(answer, str) and _PARTS_OF_ANSWER.match(answer):
        return f"the answer has parts: {answer[:60]!r}"
    if ")" not in text and "art " not in text and "uestion " not in text:
        return None
    marks = [(next(filter(None, match.groups())).lower(), match) for match in _PART.finditer(text)]
    if len(marks) < 2:
        return None
    for order in _ORDERS:
        run: list[re.Match[str]] = []
        for letter, match in marks:
            if len(run) < len(order) and letter == order[len(run)]:
                run.append(match)
        if len(run) < 2:
            continue
        ends = [match.start() for match in run[1:]] + [len(text)]
        parts = [text[match.end() : end] for match, end in zip(run, ends, strict=True)]
        if (
            sum(
                "?" in part or "？" in part or _REQUEST.match(part) is not None or _ASKS.search(part) is not None
                for part in parts
            )
            >= 2
        ):
            return f"{len(run)} parts: {', '.join(match[0].strip() for match in run)}"
    return None


def truncated(text: str) -> str | None:
    """A text that stops in the middle of a sentence or of an environment of LaTeX."""
    found = _CUT.search(text, max(0, len(text) - _CUT_CHARACTERS)) if text.rstrip().endswith(_CUT_ENDS) else None
    if found:
        return f"ends in {text[-20:]!r}"
    last = text[-_CUT_CHARACTERS:].split()[-1:]
    if last and last[0] in _UNFINISHED:
        return f"ends in the word {last[0]!r}"
    if _asks_nothing(text):
        return "asks nothing"
    if text.count("\\begin{") != text.count("\\end{"):
        return "an environment of LaTeX has no end"
    return "a formula between $$ has no end" if text.count("$$") % 2 else None


def _asks_nothing(text: str) -> bool:
    """A story in English without formulas in which nothing is asked for. Prices are no formulas."""
    if len(text) < _LONG_ENOUGH or "?" in text or not is_english_script(text):
        return False
    said = without_prices(text)
    return not (_FORMULA_SIGNS.search(said) or _REQUESTED.search(said))


def answer_given(text: str, answer: Any) -> str | None:
    """A problem that states its own answer."""
    said = str(answer).strip().strip("$").strip()
    boxed = last_boxed(text) if "\\boxed" in text else None
    if boxed is not None and any(map(str.isalnum, boxed)) and said and boxed.strip() == said:
        return f"the problem has \\boxed{{{boxed[:40]}}}"
    marked = marked_answer(text) if "####" in text else None
    if marked is not None and marked == said:
        return f"the problem has #### {marked[:40]}"
    for match in _ANSWER_IS.finditer(text):
        rest = text[match.end() :]
        if said and rest.startswith(said) and not rest[len(said) : len(said) + 1].isalnum():
            return f"the problem says: {text[match.start() : match.end() + len(said)][:80]!r}"
    return None


def contradiction(answer: Any, solutions: list[dict[str, Any]]) -> str | None:
    """Worked solutions that end in another answer than the one given, with certainty: each that ends in one does."""
    found = []
    for solution in solutions:
        text = solution.get("text")
        ends = (last_boxed(text) or marked_answer(text)) if isinstance(text, str) else None
        if ends is None or not isinstance(text, str):
            continue
        marks = [line.split("####", 1)[1].strip() for line in text.splitlines() if "####" in line]
        different = next((mark for mark in marks if certainly_differs(mark, ends)), None)
        if different is not None:
            return f"one solution ends in both {different[:60]!r} and {ends[:60]!r}"
        if not certainly_differs(ends, answer):
            return None
        found.append(ends)
    return f"the answer is {str(answer)[:60]!r}, the solution ends in {found[0][:60]!r}" if found else None


def certainly_differs(given: str, answer: Any) -> bool:
    """Whether two answers are different without any doubt: exact values, no algebra; an option's letter decides nothing."""
    text = str(answer).strip()
    if _is_option(given) or _is_option(text) or not text or not given.strip():
        return False
    verdict = quick_compare(given, text)
    return verdict is not None and verdict == differs(given, text)


def _is_option(text: str) -> bool:
    bare = re.sub(r"\\(?:text|math)(?:bf|rm)?|[\s{}()$.]", "", text)
    return re.fullmatch(r"[A-J]", bare) is not None or re.search(r"\([A-J]\)", text) is not None
