"""Each rule of cleansing on rows that it drops, and on rows that look alike and stay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from megatron_ring.curation.options import Clean
from tests.curation.conftest import Curated, problem

STORY = "Tom has 3 apples and buys 4 more at the market."
DROPPED: list[tuple[str, dict[str, Any]]] = [
    ("missing_problem", problem("N/A")),
    ("missing_problem", problem("[deleted]")),
    ("missing_answer", problem(f"{STORY} How many?", "N/A")),
    ("missing_answer", problem(f"{STORY} How many?", "see solution")),
    ("invalid_source", problem(f"{STORY} How many?", metadata={"problem_is_valid": "Incomplete"})),
    ("too_short", problem("x")),
    ("long_answer", problem(f"{STORY} How many?", "because " * 100)),
    ("invalid_characters", problem("How many \ufffd are there in 7 weeks?")),
    ("invalid_characters", problem("How many \ue001 are there in 7 weeks?")),
    ("image", problem("As shown in the figure, AB = 3 and BC = 4. Find AC.")),
    ("image", problem("![](a.png) What is the area?")),
    ("image", problem("Use the diagram below to find the value of x.")),
    ("image", problem("如图，三角形的面积是多少？")),
    ("link", problem("See https://example.com/1. What is 4 + 5?")),
    ("answer_given", problem("What is 4 + 5? The answer is 9.", "9")),
    ("answer_given", problem("What is 4 + 5? $\\boxed{9}$", "9")),
    ("proof", problem("Prove that the square root of 2 is irrational.", "proof")),
    ("proof", problem("Let n be odd. Show that n^2 - 1 is divisible by 8.", "8")),
    ("proof", problem("Let n be an odd number, and look at its square.", "1", metadata={"question_type": "proof"})),
    ("proof", problem("求证：根号二是无理数。", "略去的证明")),
    ("multiple_choice", problem("What is 2+2?\n(A) 3\n(B) 4\n(C) 5", "B")),
    ("multiple_choice",
     problem("What is 2+2? $\\textbf{(A)}\\ 3 \\qquad \\textbf{(B)}\\ 4 \\qquad \\textbf{(C)}\\ 5$", "4")),
    ("multiple_choice", problem("What is 2+2?", "B", metadata={"question_type": "MCQ"})),
    ("multiple_choice", problem("What is 2+2?", "B", metadata={"choices": ["3", "4"]})),
    ("true_false", problem("Is the sum of two odd numbers even?", "True")),
    ("true_false", problem("True or false: 7 is prime.", "T")),
    ("yes_no", problem("Is 91 a prime number?", "No")),
    ("yes_no", problem("Is 91 a prime number?", "\\text{No}")),
    ("multi_part", problem(f"{STORY} (a) How many has he? (b) How many are left if he eats 2?", "7")),
    ("multi_part", problem(f"{STORY}\n1) Find the sum.\n2) Find the difference.", "7")),
    ("multi_part", problem("What are both numbers?", "(a) 5 (b) 7")),
    ("truncated", problem(f"{STORY} How many apples does he have after the")),
    ("truncated", problem(f"{STORY} How many app...")),
    ("truncated", problem(r"Solve the system \begin{cases} x + y = 3 \\ x - y = 1")),
    ("truncated", problem("John weighs 220 pounds when he starts exercising. He manages to lose 10%…")),
    ("truncated", problem("Carrie worked for 2 hours a day for 4 days to decorate a cake. She was paid $22...")),
    ("truncated", problem("Weng went to the market in the morning. She carried two baskets with her and a purse of coins")),
    ("language", problem("Une boulangerie vend 40 croissants le matin et 30 l'après-midi. Combien en vend-elle ?")),
    ("contradicting_answer",
     problem(f"{STORY} How many?", "8", solutions=[{"text": "3 + 4 = \\boxed{7}", "language": None}])),
    ("contradicting_answer",
     problem(f"{STORY} How many?", "7", solutions=[{"text": "#### 8\nno\n#### 7", "language": None}])),
    ("unusable_answer", problem(f"{STORY} How many?", ["7", "8"])),
    ("broken_tests", {"id": "c", "domain": "code", "prompt": "Add two numbers.", "answer": {"tests": []}}),
]  # fmt: skip


@pytest.mark.parametrize(("reason", "row"), DROPPED)
def test_dropped(reason: str, row: dict[str, Any], curated: Callable[..., Curated]) -> None:
    found = curated([row, problem("What is 4 + 5 in base ten?", "9")], Clean(languages=("en", "zh")))
    assert found.reasons == {"s-1": reason}
    assert len(found.kept) == 1 and found.dropped[0]["dropped"] == {"step": "clean", "reason": reason}


KEPT = [
    problem("Mr. A. Smith buys 12 action figures and 3 pictures. How many things does he buy?"),
    problem("Each carton has a figure on it. There are 3 cartons with 4 pens. How many pens are there?"),
    problem("Find the area under the graph of $y = x^2$ from 0 to 3."),
    problem("Find $a$ and $b$ such that f(a) = 2 and f(b) = 3, and give $a + b$."),
    problem("Prove that the sum is even, then find its value for n = 3."),
    problem("Find the points (1) and (2) on the line."),
    problem("What is the sum $1 + 2 + 3 + ...$ up to 10?"),
    problem("Let $A. B$ be points. What is the length of AB?"),
    problem("Which number comes next: 2, 4, 8, ...?", "16"),
    problem("$\\int_0^1 x^2 dx$", "\\frac{1}{3}"),
    problem("2+2=", "4"),
    problem("A number is equal to the repeating decimal $0.3333...$, which is written as the fraction $\\frac{1}{n}$"),
    problem("Express as a common fraction the repeating decimal 0.3333..."),
    problem("He said the answer is 12 and was wrong. What is 4+5?", "9"),
    problem("Write $0.5$ as a fraction.", "1/2", solutions=[{"text": "It is $\\boxed{\\frac{1}{2}}$", "language": None}]),
    problem("Find all real roots.", "x=1", solutions=[{"text": "so \\boxed{\\text{(B)}}", "language": None}]),
    problem("求 3 + 4 的值。", "7"),
    problem("Solve for $x$: $5x = 30$", "no solution"),
]


def test_what_looks_alike_stays(curated: Callable[..., Curated]) -> None:
    found = curated(KEPT, Clean(languages=("en", "zh")))
    assert found.reasons == {}
    assert [row["prompt"] for row in found.kept] == [row["prompt"] for row in KEPT]


REPAIRED = [
    ("It costs 5â‚¬. How much are 3 of them?", "It costs 5€. How much are 3 of them?", "unicode"),
    ("Is 3 &lt; 5 &amp; 4? How many hold?", "Is 3 < 5 & 4? How many hold?", "unicode"),
    ("<p>What is</p><p>4 + 5?</p>", "What is\n4 + 5?", "html"),
    (
        "What is \x0crac{1}{2} + \times 3?".replace("\times", "\t" + "imes"),
        "What is \\frac{1}{2} + \\times 3?",
        "eaten_backslash",
    ),
    (
        "What is 4 + 5?\n\nPlease reason step by step, and put your final answer within \\boxed{}.",
        "What is 4 + 5?",
        "instruction",
    ),
    (
        "Solve the following math problem step by step. The last line of your response should be of the form Answer: "
        "$Answer (without quotes) where $Answer is the answer to the problem.\n\nWhat is 4 + 5?\n\nRemember to put "
        "your answer on its own "
        'line after "Answer:".',
        "What is 4 + 5?",
        "instruction",
    ),
]


@pytest.mark.parametrize(("given", "wanted", "change"), REPAIRED)
def test_repaired(given: str, wanted: str, change: str, curated: Callable[..., Curated]) -> None:
    found = curated([problem(given, "12")], Clean())
    assert [row["prompt"] for row in found.kept] == [wanted]
    assert found.changes == {"s-1": [change]}


def test_rewritten_choices(curated: Callable[..., Curated]) -> None:
    rows = [
        problem("What is 2+2?\n(A) 3\n(B) 4\n(C) 5", "B"),
        problem("Which of the following is prime?\n(A) 4\n(B) 6\n(C) 5", "C"),
        problem(
            "What is $x$? $\\textbf{(A)}\\ \\frac12 \\qquad \\textbf{(B)}\\ 4 \\qquad \\textbf{(C)}\\ 5$", "\\textbf{(A)}"
        ),
        problem("What is 3+4?", "B", metadata={"options": ["6", "B) 7", "8"]}),
        problem("What is 3+4?\nA. 6\nB. 7\nC. none of these", "B"),
    ]
    found = curated(rows, Clean(multiple_choice="rewrite"))
    assert [(row["prompt"], row["answer"]) for row in found.kept] == [
        ("What is 2+2?", "4"), ("What is $x$?", "\\frac12"), ("What is 3+4?", "7"),
    ]  # fmt: skip
    assert set(found.reasons) == {"s-2", "s-5"}


def test_nothing_is_left_of_a_text(curated: Callable[..., Curated]) -> None:
    rows = [problem("<p></p>"), problem("What is 2+2?", "4")]
    off = ("missing_problem", "too_short")
    assert len(curated(rows, Clean(off=off, languages=("en",))).kept) == 2


def test_rules_that_are_off(curated: Callable[..., Curated]) -> None:
    rows = [problem("Is 91 a prime number?", "No"), problem("What is 2+2?\n(A) 3\n(B) 4\n(C) 5", "B")]
    assert curated(rows, Clean(off=("yes_no",), multiple_choice="keep")).reasons == {}


def code(tests: Any, **more: Any) -> dict[str, Any]:
    return {"id": "c", "domain": "code", "prompt": "Read numbers and print their sum.", "answer": tests, **more}


def stdio(*pairs: tuple[str, str]) -> dict[str, Any]:
    return {"tests": [{"input": given, "output": expected} for given, expected in pairs]}


def test_tests_of_code(curated: Callable[..., Curated]) -> None:
    rows = [
        code(stdio(("1 2 \r\n", "3\n"), ("1 2\n", "3\n"), ("4 5\n", "9\n"))),
        code(stdio(("1 2 3 ...", "6"), ("1 2", "3"))),
        code(stdio(("1\\n2", "3"), ("1 2", "3"))),
        code(stdio(("1 2", "3"), ("1 2", "4"))),
        code({"input_output": {"inputs": ["1"], "outputs": ["1", "2"]}}),
        code(stdio(("3 3\n...\n.#.\n...\n", "ok"))),
        code({"input_output": {"fn_name": "f", "inputs": [[1], [1], [2]], "outputs": [[2], [2], [3]]}}),
        code({"format": "humaneval", "prompt": "", "test": "def check(f):\n    assert f(1) == 2", "entry_point": "f"}),
    ]
    found = curated(rows, Clean())
    assert found.reasons == {"s-4": "broken_tests", "s-5": "broken_tests"}
    kept = {row["id"]: row["answer"] for row in found.kept}
    assert kept["s-1"] == {"tests": [{"input": "1 2\n", "output": "3\n"}, {"input": "4 5\n", "output": "9\n"}]}
    assert len(kept["s-2"]["tests"]) == len(kept["s-3"]["tests"]) == len(kept["s-6"]["tests"]) == 1
    assert kept["s-7"] == {"fn_name": "f", "tests": [{"args": [1], "expected": 2}, {"args": [2], "expected": 3}]}
    assert kept["s-8"]["format"] == "humaneval"
    assert found.changes["s-2"] == ["tests_ellipsis"] and found.changes["s-3"] == ["tests_line_breaks"]


def test_tests_are_bounded(curated: Callable[..., Curated]) -> None:
    rows = [code(stdio(*((str(n), str(n)) for n in range(9)))), code(stdio(("x" * 500, "1"), ("1", "1")))]
    found = curated(rows, Clean(max_tests=4, max_test_characters=100))
    assert [len(row["answer"]["tests"]) for row in found.kept] == [4, 1]
    assert found.changes == {"s-1": ["tests_beyond_maximum"], "s-2": ["tests_too_large"]}
