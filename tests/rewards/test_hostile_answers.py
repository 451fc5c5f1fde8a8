r"""Answers made to hang, crash or fool a verifier. Each is scored in a real worker that is killed after 2 s."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ring.rewards import RewardPool, ScoreRequest, verifier_for

LIMIT = 2.0  # seconds


def box(content: str) -> str:
    return rf"Therefore \boxed{{{content}}}."


def matrix(size: int) -> str:
    rows = r"\\".join("&".join(["1"] * size) for _ in range(size))
    return rf"\begin{{pmatrix}}{rows}\end{{pmatrix}}"


DEEP = 100_000
# name: (domain, reference, response, verdict)
HOSTILE: dict[str, tuple[str, object, str, int]] = {
    # towers and factorials
    "tower": ("math", "1", box("9^{9^{9^9}}"), 0),
    "tower against algebra": ("math", "x+1", box("9^{9^{9^9}}"), 0),
    "negative tower": ("math", "0", box("9^{-9^{9^9}}"), 0),
    "tower times zero plus right": ("math", "7", box(r"0 \cdot x^{9^{9^9}} + 8"), 0),
    "long exponent": ("math", "2", box("2^{" + "9" * 300 + "}"), 0),
    "exponent 10^9": ("math", "2", box("3^{1000000000}"), 0),
    "e notation": ("math", "1", box("1e999999999"), 0),
    "power of ten": ("math", "1", box(r"1 \times 10^{999999999}"), 0),
    "factorials": ("math", "1", box("10!!!!"), 0),
    "factorial of a million": ("math", "1", box("1000000!"), 0),
    "nested factorial": ("math", "1", box("((9!)!)!"), 0),
    "binomial": ("math", "1", box(r"\binom{10^{9}}{5 \cdot 10^{8}}"), 0),
    "large binomial": ("math", "1", box(r"\binom{1000000}{500000}"), 0),
    "polynomial power": ("math", "x", box("(x+y+z+1)^{5000}"), 0),
    # nesting
    "parentheses": ("math", "1", box("(" * DEEP + "1" + ")" * DEEP), 0),
    "braces": ("math", "1", box("{" * DEEP + "1" + "}" * DEEP), 0),
    "300 parentheses": ("math", "2", box("(" * 300 + "1" + ")" * 300), 0),
    "20 parentheses": ("math", "1", box("(" * 20 + "1" + ")" * 20), 1),
    "open parentheses": ("math", "1", box("(" * 3000 + "1"), 0),
    "fractions": ("math", "1", box(r"\frac{1}{" * 150 + "1" + "}" * 150), 0),
    "radicals": ("math", "2", box(r"\sqrt{2+" * 90 + "2" + "}" * 90), 0),
    "radical that is right": ("math", "3", box(r"\sqrt{6+\sqrt{6+\sqrt{9}}}"), 1),
    "boxes": ("math", "7", r"\boxed{" * DEEP + "7" + "}" * DEEP, 1),
    "left and right": ("math", "1", box(r"\left(" * 400 + "1" + r"\right)" * 400), 0),
    # digits and characters
    "full-width digits": ("math", "72", box("７２"), 1),
    "arabic digits": ("math", "72", box("٧٢"), 1),
    "wrong arabic digits": ("math", "72", box("٧٣"), 0),
    "bold digits": ("math", "72", box("\U0001d7d5\U0001d7d0"), 1),
    "superscript digits": ("math", "72", box("⁷²"), 0),
    "zero width": ("math", "72", box("7\u200b2"), 1),
    "right to left": ("math", "72", box("\u202e27"), 0),
    "null bytes": ("math", "72", box("7\x001"), 0),
    "only null bytes": ("math", "72", box("\x00" * 100), 0),
    "lone surrogate": ("math", "72", box("\ud80072"), 0),
    "combining marks": ("math", "7", box("8" + "\u0301" * 3000), 0),
    # boxes
    "empty": ("math", "7", box(""), 0),
    "space": ("math", "7", box("   "), 0),
    "open box": ("math", "7", r"\boxed{7", 0),
    "closed twice": ("math", "7", r"\boxed{7}}}}}", 1),
    "unbalanced inside": ("math", "7", box("}{"), 0),
    "several, last wrong": ("math", "7", box("7") + box("8"), 0),
    "several, last right": ("math", "7", box("8") + box("7"), 1),
    "ten thousand boxes": ("math", "7", "".join(box(str(n)) for n in range(10_000)), 0),
    "inside text": ("math", "7", r"\text{we find \boxed{7} here}", 1),
    "no box": ("math", "7", "7 " * 1000, 0),
    "escaped": ("math", "7", r"\\boxed\{7\}", 0),
    # hedging
    "or": ("math", "6", box(r"5 \text{ or } 6"), 0),
    "or, bare": ("math", "6", box("6 or 5"), 0),
    "every integer": ("math", "6", box(", ".join(map(str, range(500)))), 0),
    "every integer as a set": ("math", "6", box(r"\{" + ",".join(map(str, range(500))) + r"\}"), 0),
    "chain of equalities": ("math", "6", box("=".join(map(str, range(7)))), 0),
    "not": ("math", "6", box(r"\neg 6"), 0),
    "text around": ("math", "6", box(r"6 \text{ is wrong, it is } 7"), 0),
    "plus or minus": ("math", "6", box(r"\pm 6"), 0),
    "letters": ("science", "B", box("A, B, C, D"), 0),
    "letters as options": ("science", "B", box("(A) (B) (C) (D)"), 0),
    "B or C": ("science", "B", box("B or C"), 0),
    "unit hedge": ("science", "5 V", box("5 V or 6 V"), 0),
    "all units": ("science", "5 V", box("5 V A W J N"), 0),
    "nan": ("math", "1", box("nan"), 0),
    "infinity": ("math", "1", box(r"\infty"), 0),
    "division by zero": ("math", "1", box(r"\frac{1}{0}"), 0),
    "zero over zero": ("science", "0.5", box(r"\frac{0}{0}"), 0),
    # programs
    "def": ("math", "7", box(r"\def\a{\a\a}\a 7"), 0),
    "newcommand": ("math", "7", box(r"\newcommand{\x}{7}\x"), 0),
    "input": ("math", "7", box(r"\input{/etc/passwd}"), 0),
    "write": ("math", "7", box(r"\immediate\write18{id} 7"), 0),
    "python": ("math", "7", box("__import__('os').system('id') or 7"), 0),
    "template": ("science", "7", box("{{7}}%s{0.__class__}"), 0),
    # size
    "megabyte of digits": ("math", "7", box("7" * 1_000_000), 0),
    "megabyte line": ("math", "7", "x" * 1_000_000 + box("7"), 1),
    "million commas": ("math", "7", box("," * 1_000_000), 0),
    "3000 commas": ("math", "7", box("," * 3000), 0),
    "matrix": ("math", r"\begin{pmatrix}1&1\\1&1\end{pmatrix}", box(matrix(1000)), 0),
    "small matrix": ("math", r"\begin{pmatrix}1&1\\1&1\end{pmatrix}", box(matrix(2)), 1),
    "matrix for a number": ("math", "1", box(matrix(30)), 0),
    "4000 spaces": ("science", "5 cm", box("5" + " " * 4000 + "cm"), 1),
    "4000 backslashes": ("math", "5", box("\\" * 4000), 0),
    "4000 dollars": ("math", "5", box("$" * 4000), 0),
    "4000 primes": ("math", "5", box("f" + "'" * 4000), 0),
    "units": ("science", "5 cm", box("5" + " cm" * 1000), 0),
    "unit exponents": ("science", "5 cm", box("5 cm^{99999999}"), 0),
    "power of a unit": ("science", "5 cm", box("5 Ym^99 Yg^99 YL^99"), 0),
    # analysis
    "sum": ("math", "5050", box(r"\sum_{k=1}^{100} k"), 1),
    "long sum": ("math", "1", box(r"\sum_{k=1}^{10^{12}} \sin(k^k)"), 0),
    "integral": ("math", r"\frac{1}{3}", box(r"\int_0^1 x^2 \, dx"), 1),
    "hard integral": ("math", "1", box(r"\int_0^{\infty} \frac{\sin(x^x)}{e^{x^7}+\ln(x)} dx"), 0),
    "limit": ("math", "1", box(r"\lim_{x \to 0} \frac{\sin x}{x}"), 1),
    "product": ("math", "120", box(r"\prod_{k=1}^{5} k"), 1),
    "long product": ("math", "1", box(r"\prod_{k=1}^{1000000} (k^2+1)"), 0),
    "trigonometry": ("math", "0", box(r"\sin(" * 40 + "1" + ")" * 40), 0),
    "many terms": ("math", "x", box("+".join(f"x^{{{n}}}" for n in range(300))), 0),
    "many equations": ("math", "x=1", box("=".join(["x"] * 1500)), 0),
    "plus or minus, often": ("math", "6", box(r"\pm 1" * 100), 0),
    # references
    "hostile reference": ("math", "9^{9^{9^9}}", box("1"), 0),
    "long reference": ("math", "7" * 100_000, box("7"), 0),
    "deep reference": ("math", "(" * 3000 + "1" + ")" * 3000, box("7"), 0),
    "list as reference": ("math", ["7"], box("7"), 0),
}


# Joined by spaces here for reading; the fuzz joins them by nothing.
FRAGMENTS = (
    r"\frac \sqrt \pi \text { } ( ) [ ] \{ \} , ; = < > \le \ne \pm \cup \in \infty + - * / ^ _ ! | : . %"
    r" \circ ° ² ½ √ ７ \\ & 1 2 0 12 1,000 0.5 1e3 x i cm m/s or and B A) \begin{matrix} \end{matrix}"
    r" \overline \binom \sin \pmod \mathbb{R} \setminus million per $"
)
PIECES = [*FRAGMENTS.split(), " ", "answer is", "\x00", "\ud800"]
ANSWERS = st.lists(st.sampled_from(PIECES), max_size=14).map("".join)


@settings(max_examples=500, deadline=None)
@given(ANSWERS, ANSWERS, st.sampled_from(["math", "science"]))
def test_the_quick_path_raises_on_nothing(answer: str, reference: str, domain: str) -> None:
    quick_score = verifier_for(domain).quick_score
    assert quick_score is not None
    reward = quick_score(ScoreRequest(domain, None, rf"\boxed{{{answer}}}", reference))
    assert reward is None or reward.value in (0, 1)


@pytest.fixture(scope="module")
def pool() -> Iterator[RewardPool]:
    with RewardPool(workers=1, time_limit=LIMIT) as own:
        yield own


def test_there_are_enough() -> None:
    assert len(HOSTILE) >= 60


@pytest.mark.parametrize("name", HOSTILE)
def test_the_verdict_is_right_and_in_time(pool: RewardPool, name: str) -> None:
    domain, reference, response, verdict = HOSTILE[name]
    (reward,) = pool.score([ScoreRequest(domain, None, response, reference)])
    assert reward.value == verdict, reward.reason
    assert len(reward.reason) < 300


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", HOSTILE)
def test_the_quick_path_runs_in_the_trainer_and_never_holds_it_up(name: str) -> None:
    domain, reference, response, verdict = HOSTILE[name]
    quick_score = verifier_for(domain).quick_score
    assert quick_score is not None
    reward = quick_score(ScoreRequest(domain, None, response, reference))
    assert reward is None or reward.value == verdict
