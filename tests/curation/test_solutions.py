"""Solutions of code problems run in the sandbox; a problem stays where one passes everything."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from megatron_ring.curation.options import Clean, Solutions
from megatron_ring.curation.solutions import as_response
from tests.curation.conftest import Curated, problem

SUM = {"tests": [{"input": "1 2\n", "output": "3\n"}, {"input": "4 5\n", "output": "9\n"}]}


def code(*solutions: str) -> dict[str, Any]:
    given = [{"text": text, "language": None} for text in solutions]
    return {
        "id": "c",
        "domain": "code",
        "prompt": "Print the sum of two numbers.",
        "answer": SUM,
        **({"solutions": given} if given else {}),
    }


def test_solutions(curated: Callable[..., Curated]) -> None:
    right, wrong = "print(sum(map(int, input().split())))", "print(3)"
    rows = [code(wrong, right, right), code(wrong), code(), problem("What is 2+2?", "4")]
    found = curated(rows, Clean(), Solutions(unsafe_code=False))
    assert found.reasons == {"s-2": "no_passing_solution", "s-3": "no_solution"}
    assert [solution["text"] for solution in found.kept[0]["solutions"]] == [right]
    assert "none of 1 passes every test" in found.ledger[0]["evidence"] and len(found.kept) == 2


def test_languages_of_solutions() -> None:
    assert as_response({"text": "#include <cstdio>\nint main(){}"}, {}).startswith("```cpp\n")
    assert as_response({"text": "public class Main {}"}, {}).startswith("```java\n")
    assert as_response({"text": "print(1)", "language": None}, {"language": "python"}).startswith("```python\n")
    assert as_response({"text": "It is\n```python\nprint(1)\n```"}, {}).startswith("It is")
