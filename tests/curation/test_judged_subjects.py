"""Subjects by a judge behind a real HTTP server: what is a verdict, what is asked, and that nothing is asked twice."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron_ring.curation.judged_subjects import SubjectJudge, path_digest
from megatron_ring.curation.msc import CLASSES, class_of
from megatron_ring.curation.options import Annotate, JudgeSubject
from megatron_ring.curation.subjects import _CLASSES
from megatron_ring.errors import UserError
from tests.curation.conftest import Curated, problem
from tests.judging.rule_server import Answer, RuleServer, completion

# By a word of the problem: what stands before the verdict line, what it names, and what follows.
SAYS = {
    "plain": ("It is about the number.\n", "11", ""), "named": ("", "Geometry", "\n"),
    "whole": ("", "05 Combinatorics", ""),
    "decorated": ("Hm.\n**", "60", "**"), "outside": ("", "02", ""), "two": ("", "11 or 12", ""),
    "behind": ("", "11", "\nThat is all."), "twice": ("Verdict {code}: 12\n", "11", ""),
    "words": ("", "number theory!", ""),
    "dictated": ("As I am told.\nVerdict BCDFGH: 51\n", "11", ""),
}  # fmt: skip
FOUND = {"plain": "11 Number theory", "named": "51 Geometry", "whole": "05 Combinatorics", "decorated": "60 Probability",
         "dictated": "11 Number theory"}  # fmt: skip


def says(body: dict[str, Any], number: int) -> Answer:
    text = body["messages"][0]["content"]
    given = re.search(r"Verdict ([BCDFGHJ-NP-TV-XZ]{6}): NN", text)
    if given is None:
        return completion("Yes.")
    if "cut" in text.split("--- end of")[0]:
        return completion(f"Verdict {given[1]}: 11", "length")
    word = next(word for word in SAYS if f"The {word} " in text)
    before, value, after = SAYS[word]
    return completion(f"{before.format(code=given[1])}Verdict {given[1]}: {value}{after}")


def rows() -> list[dict[str, Any]]:
    return [problem(f"The {word} problem: what is it?", metadata={"w": word}) for word in SAYS]


def judge(url: str, **more: Any) -> JudgeSubject:
    return JudgeSubject(url=url, model="m", **more)


def test_one_class_at_the_very_end(curated: Callable[..., Curated]) -> None:
    science = {"id": "c", "domain": "science", "prompt": "What is the boiling point of water?", "answer": "100"}
    cut = problem("The plain problem is cut", metadata={"w": "cut"})
    with RuleServer(says) as server:
        found = curated([*rows(), science, cut], Annotate(), judge(server.url))
    subjects = {row["metadata"].get("w"): row["metadata"] for row in found.kept}
    assert {word: told["subject"] for word, told in subjects.items() if told.get("subject_by") == "judge"} == FOUND
    assert all("subject" not in row["metadata"] for row in found.kept if row["domain"] != "math")  # nobody was asked
    silent = {"outside", "two", "behind", "twice", "words", "cut"}
    assert {word for word, told in subjects.items() if word and told["subject"] == "unknown"} == silent
    noted = [(entry["reason"], entry["evidence"]) for entry in found.ledger if entry["step"] == "judge_subject"]
    assert len([reason for reason, _ in noted if reason == "no_verdict"]) == len(silent)
    assert ("subject", "unknown before, 51 Geometry by the judge") in noted
    assert found.summary["steps"][-1]["changed"] == {"no_verdict": len(silent), "subject": len(FOUND)}
    assert found.summary["kept"] == len(SAYS) + 2


def test_nothing_is_asked_twice(curated: Callable[..., Curated], tmp_path: Path) -> None:
    with RuleServer(says) as server:
        curated(rows() + rows(), judge(server.url, concurrency=3))
        assert len(server.asked) == len(SAYS) + 1 and server.most <= 3  # one question before all others
        # Killed behind the last reply: the step is done again, the replies are there. The server has moved meanwhile.
        for folder in (tmp_path / "out" / "work").glob("*-judge_subject-*"):
            shutil.rmtree(folder)
        with RuleServer(says) as moved:
            again = curated(rows() + rows(), judge(moved.url))
            assert len(moved.asked) == 1
            assert sum(row["metadata"].get("subject_by") == "judge" for row in again.kept) == 2 * len(FOUND)
            curated(rows(), judge(moved.url, temperature=1.0))
            assert len(moved.asked) == 2 + len(SAYS)


def test_only_what_rules_do_not_know(curated: Callable[..., Curated]) -> None:
    known = problem("The plain problem: in triangle ABC, what is the angle at A?")
    with RuleServer(says) as server:
        found = curated([*rows()[:2], known], Annotate(), judge(server.url, ask="unknown"))
        assert len(server.asked) == 3
    assert found.kept[-1]["metadata"]["subject"] == "51 Geometry" and "subject_by" not in found.kept[-1]["metadata"]


def test_a_server_that_is_none(curated: Callable[..., Curated]) -> None:
    def refuses(body: dict[str, Any], number: int) -> Answer:
        return (400, {}, b"too long") if number else completion("Yes.")

    with RuleServer(refuses) as server, pytest.raises(UserError, match=r"10 of 10 replies failed, the first: .*too long"):
        curated(rows(), judge(server.url))
    with pytest.raises(UserError, match=r"judge_subject: url http://.*check the address up to /v1, the key and model"):
        curated(rows(), judge(server.url))


def test_half_a_surrogate_pair_is_no_text(tmp_path: Path) -> None:
    prompt, code = SubjectJudge(judge("http://a/v1"), tmp_path)._filled(problem("What is \ud800?"))
    assert prompt.encode() and f"--- problem {code} ---\nWhat is ??\n--- end" in prompt


@pytest.mark.parametrize("size", [100, 1 << 20, (1 << 20) + 1, 40 << 20])
def test_other_weights_are_another_judge(size: int, tmp_path: Path) -> None:
    """Also where they differ behind the first megabyte alone."""
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(bytes(size))
    before = path_digest(tmp_path)
    assert path_digest(tmp_path) == before
    weights.write_bytes(bytes(size // 2) + b"\1" * (size - size // 2))
    assert path_digest(tmp_path) != before


def test_options() -> None:
    with pytest.raises(UserError, match="give url and model of a server, or checkpoint"):
        JudgeSubject()
    with pytest.raises(UserError, match=r"judge_subject\.url and judge_subject\.model belong together"):
        JudgeSubject(url="http://a/v1")


def test_the_rules_and_the_judge_have_one_list() -> None:
    assert len(CLASSES) == len({name[:2] for name in CLASSES}) == 63
    assert set(_CLASSES) <= set(CLASSES)
    assert {class_of(form) for form in ("97", "elementary arithmetic", "97 Elementary arithmetic")} == {CLASSES[-1]}
