"""Annotation: what is written into metadata."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from megatron_ring.curation.annotate import kind_of_answer
from megatron_ring.curation.options import Annotate
from megatron_ring.curation.subjects import subject_of
from tests.curation.conftest import Curated, problem

KINDS = [("5", "integer"), ("1,234", "integer"), ("0.5", "number"), ("1/2", "fraction"), ("\\frac{1}{2}", "fraction"),
         ("B", "choice"), ("x^2+1", "expression"), ("no solution", "text"), (7, "integer"), ({"tests": []}, "tests"),
         ([1], "object")]  # fmt: skip


@pytest.mark.parametrize(("answer", "kind"), KINDS)
def test_kinds_of_answers(answer: Any, kind: str) -> None:
    assert kind_of_answer(answer) == kind


SUBJECTS = [
    ("What is the probability that two fair dice show a sum of 7?", None, "60 Probability"),
    ("In triangle $ABC$ the angle at $A$ is 60 degrees. Find the area of the triangle.", None, "51 Geometry"),
    ("Find the remainder when $3^{100}$ is divisible by a prime.", None, "11 Number theory"),
    ("How many pounds of apples cost 12 dollars in total?", None, "97 Elementary arithmetic"),
    ("Anything", "Intermediate Algebra", "12 Polynomials and equations"),
    ("Anything", "Mathematics -> Geometry -> Plane Geometry", "51 Geometry"),
    ("求三角形的面积", None, "51 Geometry"),
    ("Hm", None, None),
]


@pytest.mark.parametrize(("text", "given", "subject"), SUBJECTS)
def test_subjects(text: str, given: str | None, subject: str | None) -> None:
    assert subject_of(text, given) == subject


def test_metadata(curated: Callable[..., Curated]) -> None:
    rows = [
        problem(
            "How many dollars do 3 pens cost in total?", "9", metadata={"llama8b_solve_rate": 0.25, "subject": "Prealgebra"}
        ),
        problem("求三角形的面积是多少，其中底边为三，高为四", "6", metadata={"llama8b_solve_rate": 30.0}),
    ]
    found = curated(rows, Annotate(solve_rate="llama8b_solve_rate"))
    one, other = (row["metadata"] for row in found.kept)
    assert (one["solve_rate"], one["difficulty"], one["language"], one["words"]) == (0.25, 0.75, "en", 9)
    assert (one["subject"], one["original_subject"]) == ("97 Elementary arithmetic", "Prealgebra")
    assert (other["solve_rate"], other["difficulty"], other["language"]) == (0.3, 0.7, "zh")
