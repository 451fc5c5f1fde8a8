from __future__ import annotations

import itertools
import json
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_ring.errors import UserError
from megatron_ring.rewards import ScoreRequest, verifier_for
from megatron_ring.rewards.exact import parse_number
from megatron_ring.rewards.math import compare, quick_score, verify

ROOT = Path(__file__).resolve().parents[2]
GSM8K = ROOT / "../shared/data/gsm8k_train.jsonl"


EQUAL = [
    ("72", "72"),
    ("120", r"\frac{10!}{3!7!}"),
    (r"\frac{10!}{7!3!}", "120"),
    ("5!2", "240"),
    ("5个", "5"),
    ("18 元", "18"),
    ("12平方厘米", "12"),
    ("3只鸡", "3"),
    ("5", "5个"),
    (r"18\text{元}", "18"),
    ("36平方米", "36平方米"),
    ("1/2", "0.5"),
    ("0.5", "1/2"),
    (r"\frac12", "0.5"),
    (r"\dfrac{1}{2}", "1/2"),
    ("x+1", "1+x"),
    ("(x+1)^2", "x^2+2x+1"),
    (r"\{2, 1\}", r"\{1,2\}"),
    ("(1,2)", "(1, 2)"),
    ("1,234", "1234"),
    ("1{,}234", 1234),
    ("18.00", "18"),
    (r"\$18", "18"),
    ("$18$", "$18$"),
    ("-3.", "\u22123"),
    ("1.5e3", r"1.5 \times 10^{3}"),
    ("0.333333", r"\frac{1}{3}"),
    ("2^{10}", "1024"),
    (r"50\%", "50\\%"),
    (r"\sqrt{8}", r"2\sqrt{2}"),
    ("5", "x=5"),
    ("x = 5", "5"),
    (r"\text{Evelyn}", "Evelyn"),
    (r"5\text{ cm}", "5"),
    ("(B)", "B"),
    (r"\text{B) 5 cm}", "B"),
    ("5", r"\boxed{5}"),
    (r"2 \cdot 10^{-34}", r"2 \times 10^{-34}"),
    (r"\sqrt{4} \cdot 10^{-34}", r"2 \times 10^{-34}"),
]
DIFFERENT = [
    ("71", "72"),
    ("20", r"\frac{10!}{3!7!}"),
    ("3!7", "37"),
    ("5万", "5"),
    ("3个半", "3"),
    ("5个以上", "5"),
    ("5倍", "5"),
    ("5元或6元", "5"),
    ("6个", "5"),
    ("5个", "5米"),
    ("5分之一", "5"),
    ("5个百分点", "5"),
    ("0.5", "0.51"),
    ("0.33", "1/3"),
    ("x+2", "1+x"),
    ("(2,1)", "(1,2)"),
    (r"\{1,2,3\}", r"\{1,2\}"),
    ("5, 6", "5"),
    ("5 or 6", "6"),
    ("72 and 73", "72"),
    ("", "5"),
    ("}{", "5"),
    ("A", "B"),
    ("B) or C)", "B"),
    ("0", r"6.63 \times 10^{-34}"),
    (r"1 \times 10^{-34}", r"6.63 \times 10^{-34}"),
    (r"0 \cdot \sqrt{2}", r"6.63 \times 10^{-34}"),
    ("1/0", "0"),
    ("7" * 5000, "7"),
]


@pytest.mark.parametrize(("given_answer", "reference"), EQUAL)
def test_equal_answers(given_answer: str, reference: str) -> None:
    reward = verify(rf"so it is \boxed{{{given_answer}}}.", reference)
    assert (reward.value, reward.reason) == (1.0, "correct")


@pytest.mark.parametrize(("given_answer", "reference"), DIFFERENT)
def test_different_answers(given_answer: str, reference: str) -> None:
    reward = verify(rf"\boxed{{{given_answer}}}", reference)
    assert reward.value == 0.0 and len(reward.reason) < 250


def test_the_last_box_counts_and_no_box_is_no_reward() -> None:
    assert verify(r"\boxed{1} no, \boxed{2}", "2").value == 1
    assert verify(r"\boxed{2} no, \boxed{1}", "2").value == 0
    assert verify("the answer is 2", "2") == verify("", "2")
    assert verify("2", "2").reason == "no boxed answer"


@pytest.mark.parametrize("reference", [None, ["1"], {"a": 1}, True, "", " $ "])
def test_a_useless_reference_says_so(reference: object) -> None:
    reward = verify(r"\boxed{1}", reference)
    assert reward.value == 0 and "reference" in reward.reason


def test_numbers_are_read_exactly() -> None:
    for text, value in [("-1,234.5", "-1234.5"), (r"-\frac{3}{4}", "-3/4"), (".5", "1/2"), ("2e-3", "1/500")]:
        number = parse_number(text)
        assert number is not None and number.value == Fraction(value)
    for text in ["", "1,23", "1 2", "1/0", "x", "1e9999", "9" * 500, "--1", "1.2.3", "nan", "inf"]:
        assert parse_number(text) is None


@given(st.integers(-(10**12), 10**12), st.integers(-(10**12), 10**12))
def test_integers_are_decided_without_a_worker(a: int, b: int) -> None:
    reward = quick_score(ScoreRequest("math", None, rf"\boxed{{{a}}}", f"{b:,}"))
    assert reward is not None and reward.value == float(a == b)


def gsm8k(count: int) -> list[str]:
    if not GSM8K.is_file():
        pytest.skip(f"{GSM8K} is absent")
    with GSM8K.open() as lines:
        return [json.loads(line)["answer"].split("####")[1].strip() for line in itertools.islice(lines, count)]


def test_real_answers_against_themselves_and_one_more() -> None:
    for gold in gsm8k(500):
        wrong = str(int(gold.replace(",", "")) + 1)
        assert verify(rf"\boxed{{{gold}}}", gold).value == 1
        assert verify(rf"\boxed{{{wrong}}}", gold).value == 0
        assert verify(rf"\boxed{{{wrong}}} or rather \boxed{{\${gold}.00}}", gold).value == 1


def test_real_answers_with_a_unit_in_words() -> None:
    for gold in gsm8k(500)[::5]:
        wrong = str(int(gold.replace(",", "")) + 1)
        assert compare(rf"{gold}\text{{ dollars}}", gold).value == 1
        assert compare(rf"{wrong}\text{{ dollars}}", gold).value == 0


def test_unknown_domains_are_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"'maths'.*math"):
        verifier_for("maths")


def test_importing_rewards_loads_neither_torch_nor_sympy() -> None:
    program = (
        "import sys, megatron_ring.rewards;"
        "print([m for m in ('torch', 'megatron', 'sympy', 'mpmath', 'math_verify', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
