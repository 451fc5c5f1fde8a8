from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_ring.rewards.boxed import last_boxed


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("no answer", None),
        (r"\boxed{5}", "5"),
        (r"\boxed {5}", "5"),
        (r"first \boxed{4}, then \boxed{5}.", "5"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed{\left\{1\right\}} and {", r"\left\{1\right\}"),
        (r"\boxed{a \\{b}}", r"a \\{b}"),
        (r"\boxed{\boxed{5}}", "5"),
        (r"\boxed{}", ""),
        (r"\boxed{5} \boxed{6", "5"),
        (r"\boxed{5", None),
        (r"\boxed{1 \boxed{2}", "2"),
        (r"\boxed{ \boxed{\boxed{5}} }", "5"),
        (r"\boxed{\boxed{5} or \boxed{6}}", "{5} or  {6}"),
        (r"\boxed{-\boxed{5}}", "- {5}"),
        (r"\boxed{\boxed 5, 6}", "5, 6"),
        ("\\boxed{5 \n\nIt is \\boxed{6}. So }", "6"),
        (r"} } \boxed{5} } {", "5"),
        (r"\boxed{ {5 \} }", None),
        (r"unboxed{5}", None),
    ],
)
def test_last_complete_box(text: str, content: str | None) -> None:
    assert last_boxed(text) == content


@given(st.text(alphabet="\\{}b5 ", max_size=30), st.text(alphabet="\\{}b5 ", max_size=30))
def test_any_text_is_safe_and_a_last_plain_box_is_found(before: str, after: str) -> None:
    last_boxed(before + r"\boxed{" + after)
    assert last_boxed(before + r" \boxed{x}") == "x"


@pytest.mark.parametrize(
    "text",
    [
        r"\boxed" + "{" * 1_000_000,
        r"\boxed{" * 150_000,
        r"\boxed{5}" + r"\boxed{{" * 120_000,
        "\\" * 1_000_000,
        (r"\boxed" + " " * 1000) * 1000,
        "}" * 1_000_000,
        r"\boxed{" + "{}" * 500_000,
    ],
    ids=["open", "boxes", "unbalanced", "backslashes", "spaces", "closed", "pairs"],
)
def test_a_hostile_megabyte_takes_linear_time(text: str) -> None:
    started = time.process_time()
    last_boxed(text)
    assert time.process_time() - started < 3.0
