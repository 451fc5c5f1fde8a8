"""Real problems with planted damage, to measure curation by: what was done to which row is known.

From GSM8K's training file and HumanEval as they are downloaded. Each kind of damage gets the same number of rows; all others
are clean. The same seed gives the same rows.
"""

from __future__ import annotations

import ast
import gzip
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_ring.curation.meaning import NUMBER_WORDS, TURNING

Row = dict[str, Any]


@dataclass
class Planted:
    """Rows as they are to be written, and what is wrong with them.

    Attributes:
        lines: of the file, one a row.
        damage: kind of damage by line number, from 1; clean rows are not in it.
        pairs: for copies, the line of the original by the line of the copy.
        repaired: what a damaged text was, by line, for damage that is repaired and not dropped.
        benchmark: problems of the benchmark that are planted.
    """

    lines: list[str] = field(default_factory=list)
    damage: dict[int, str] = field(default_factory=dict)
    pairs: dict[int, int] = field(default_factory=dict)
    repaired: dict[int, str] = field(default_factory=dict)
    benchmark: list[Row] = field(default_factory=list)


def math_rows(gsm8k: Path) -> list[Row]:
    """GSM8K in the form of NuminaMath: problem, a solution that ends in a box, answer."""
    rows = []
    for line in gsm8k.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        worked, _, answer = row["answer"].partition("####")
        text = f"{worked.strip()}\nThe answer is $\\boxed{{{answer.strip()}}}$."
        rows.append(
            {"problem": row["question"], "solution": text, "answer": answer.strip(), "question_type": "math-word-problem"}
        )
    return rows


def code_rows(humaneval: Path) -> list[Row]:
    """HumanEval in the form of APPS: calls of the function with literal arguments that the tests compare."""
    rows = []
    with gzip.open(humaneval, "rt", encoding="utf-8") as stream:
        for line in stream:
            task = json.loads(line)
            inputs, outputs = _calls(task["test"])
            if len(inputs) < 3 or all(value is None for value in outputs):
                continue
            tests = {"fn_name": task["entry_point"], "inputs": inputs, "outputs": outputs}
            solution = json.dumps([task["prompt"] + task["canonical_solution"]])
            rows.append({"problem_id": task["task_id"], "question": task["prompt"], "input_output": json.dumps(tests),
                         "solutions": solution, "starter_code": task["prompt"], "difficulty": "interview"})  # fmt: skip
    return rows


def _calls(test: str) -> tuple[list[Any], list[Any]]:
    """Arguments and results of `assert candidate(…) == …` with literals on both sides that JSON can hold. Nothing is run."""
    inputs, outputs, seen = [], [], set()
    for node in ast.walk(ast.parse(test)):
        if not isinstance(node, ast.Assert) or not isinstance(node.test, ast.Compare):
            continue
        call, operators, values = node.test.left, node.test.ops, node.test.comparators
        if not (isinstance(call, ast.Call) and len(operators) == 1 and isinstance(operators[0], ast.Eq)):
            continue
        try:
            given = [ast.literal_eval(argument) for argument in call.args]
            expected = ast.literal_eval(values[0])
            key = json.dumps(given)
            if json.loads(key) != given or json.loads(json.dumps(expected)) != expected or key in seen:
                continue
        except (ValueError, TypeError):
            continue
        seen.add(key)
        inputs.append(given)
        outputs.append([expected])
    return inputs, outputs


def _foreign(row: Row, rng: random.Random) -> None:
    a, b, c = (rng.randint(2, 400) for _ in range(3))
    texts = (
        f"Une boulangerie vend {a} croissants le matin et {b} l'après-midi. Chaque croissant coûte {c} euros. Combien "
        f"d'euros la boulangerie gagne-t-elle pendant la journée ?",
        f"Ein Bauer hat {a} Kühe und {b} Schafe auf der Weide. Er verkauft {c} Tiere auf dem Markt. Wie viele Tiere "
        f"bleiben dem Bauern danach noch übrig?",
        f"María tiene {a} caramelos y su hermano le regala {b} más para su cumpleaños. Después reparte {c} entre sus "
        f"amigos. ¿Cuántos caramelos le quedan a María?",
        f"小明有{a}个苹果，妈妈又给了他{b}个苹果，后来他把其中的{c}个苹果分给了同学们，请问小明现在还剩下多少个苹果？",
        f"В магазине было {a} яблок и {b} груш. Утром покупатели купили {c} фруктов. Сколько фруктов осталось в магазине к "
        f"вечеру?",
    )
    row["problem"], row["solution"] = rng.choice(texts), "…"


def _choice(row: Row, rng: random.Random) -> None:
    number = int("".join(letter for letter in row["answer"] if letter.isdigit()) or 7)
    options = [number, number + rng.randint(1, 9), 2 * number + 11, max(0, number - 3) + 41]
    rng.shuffle(options)
    style = rng.choice(("({}) {}", "{}. {}", "{}) {}", "$\\textbf{{({})}}\\ {}$"))
    listed = rng.choice(("\n", " \\qquad ", "   ")).join(style.format("ABCD"[i], value) for i, value in enumerate(options))
    row["problem"] += "\n" + listed
    row["answer"] = "ABCD"[options.index(number)]


def _contradiction(row: Row, rng: random.Random) -> None:
    row["answer"] = str(int("".join(letter for letter in row["answer"] if letter.isdigit()) or 7) + rng.randint(1, 50))


def _cut(row: Row, rng: random.Random) -> None:
    words = row["problem"].split()
    kept = " ".join(words[: rng.randint(len(words) // 3, 2 * len(words) // 3)]).rstrip(".?!,")
    row["problem"] = kept + rng.choice((" the", " and", "...", " [truncated]", "…", " of", ","))


def _given(row: Row, rng: random.Random) -> None:
    ways = (" The answer is {}.", " (Answer: {})", "\n#### {}", " \\boxed{{{}}}", " Final answer: ${}$")
    row["problem"] += rng.choice(ways).format(row["answer"])


def _parts(row: Row, rng: random.Random) -> None:
    marks = rng.choice((("(a)", "(b)"), ("a)", "b)"), ("(i)", "(ii)"), ("(1)", "(2)"), ("Part A:", "Part B:")))
    middle = row["problem"].rfind(". ") + 1
    story, asked = row["problem"][:middle], row["problem"][middle:].strip()
    row["problem"] = f"{story}\n{marks[0]} {asked} {marks[1]} What would the result be if every amount were doubled?"


def _set(name: str, *values: Any) -> Callable[[Row, random.Random], None]:
    def damage(row: Row, rng: random.Random) -> None:
        row[name] = rng.choice(values)

    return damage


def _before(*texts: str) -> Callable[[Row, random.Random], None]:
    def damage(row: Row, rng: random.Random) -> None:
        row["problem"] = rng.choice(texts) + row["problem"]

    return damage


def _inside(*texts: str) -> Callable[[Row, random.Random], None]:
    def damage(row: Row, rng: random.Random) -> None:
        place = rng.randrange(len(row["problem"]))
        row["problem"] = row["problem"][:place] + rng.choice(texts) + row["problem"][place:]

    return damage


def _proof(row: Row, rng: random.Random) -> None:
    said = row["problem"].rpartition(". ")[0] or row["problem"].rstrip("?")
    row["problem"] = f"{said}. {rng.choice(('Prove that', 'Show that', 'Verify that'))} the total is {row['answer']}."


def _judgement(row: Row, rng: random.Random) -> None:
    row["problem"] = f"True or false: the answer to the following is {row['answer']}. {row['problem']}"
    row["answer"] = rng.choice(("True", "False", "true", "\\text{True}"))


def _yes_no(row: Row, rng: random.Random) -> None:
    row["problem"] += " Is it more than a hundred?"
    row["answer"] = rng.choice(("Yes", "No", "yes", "No."))


MATH_DAMAGE: dict[str, Callable[[Row, random.Random], None]] = {
    "missing_answer": _set("answer", "", None, "N/A", "null", "?", "see solution"),
    "missing_problem": _set("problem", "", None, "N/A", "[deleted]", "   "),
    "invalid_characters": _inside("\ufffd", "\ue012", "\ufffd\ufffd"),
    "image": _before("As shown in the figure, ", "![](https://cdn.example/i.png) ", "In the diagram below: ", "[image] ",
                     "Refer to the picture above. "),
    "link": _before("See https://example.com/p/12 for the original. ", "(Source: www.example.org) "),
    "contradicting_answer": _contradiction,
    "multi_part": _parts,
    "proof": _proof,
    "multiple_choice": _choice,
    "true_false": _judgement,
    "yes_no": _yes_no,
    "language": _foreign,
    "truncated": _cut,
    "answer_given": _given,
    "invalid_source": _set("problem_is_valid", "No", "Incomplete", "Problem not solved"),
}  # fmt: skip


def _ellipsis(tests: dict[str, Any], rng: random.Random) -> None:
    tests["inputs"] = [[f"{json.dumps(given)[:20]}..."] for given in tests["inputs"]]


def _lost(tests: dict[str, Any], rng: random.Random) -> None:
    tests["outputs"] = tests["outputs"][: rng.randint(0, len(tests["outputs"]) - 1)]


def _conflict(tests: dict[str, Any], rng: random.Random) -> None:
    others = [["another value"] for _ in tests["inputs"]]
    tests["inputs"], tests["outputs"] = tests["inputs"] * 2, tests["outputs"] + others


CODE_DAMAGE: dict[str, Callable[[dict[str, Any], random.Random], None]] = {
    "tests_ellipsis": _ellipsis, "tests_lost": _lost, "tests_conflicting": _conflict,
}  # fmt: skip


def near_copy(text: str, rng: random.Random) -> str:
    """A text with one word replaced by another; neither is a number, nor a word that turns a question round, such as `sells`
    or `minimum`: those make another problem, as curation defines it. `turned` is about these."""
    words = text.split(" ")
    usable = (i for i, word in enumerate(words[2:-4], start=2) if word.isalpha() and word.islower() and len(word) > 4)
    places = [i for i in usable if words[i] not in NUMBER_WORDS and words[i] not in TURNING]
    if places:
        words[rng.choice(places)] = rng.choice(("really", "kindly", "gently", "simply"))
    return " ".join(words)


# Pairs of words that turn a question into another one.
_OPPOSITES = (
    "hours minutes", "days weeks", "weeks months", "months years", "more less", "more fewer", "most least", "first last",
    "before after", "left right", "buys sells", "bought sold", "earns spends", "saves spends", "boys girls", "red blue",
    "green yellow", "monday tuesday", "saturday sunday", "morning evening", "miles feet", "pounds ounces", "dollars cents",
    "older younger", "taller shorter", "larger smaller", "longer shorter", "sum difference", "increased decreased",
)  # fmt: skip
_TURNED = {one: other for pair in _OPPOSITES for one, other in (pair.split(), pair.split()[::-1])}


def turned(text: str, rng: random.Random) -> str | None:
    """A text with one word replaced by its opposite, so that it asks something else; None where it has no such word."""
    words = text.split(" ")
    places = [i for i, word in enumerate(words) if word.lower() in _TURNED]
    if not places:
        return None
    place = rng.choice(places)
    words[place] = _TURNED[words[place].lower()]
    return " ".join(words)


def respelled(text: str, rng: random.Random) -> str:
    """The same problem with other white space, capitals, LaTeX around its numbers, and a label."""
    words = [f"${word}$" if word.isdigit() and rng.random() < 0.5 else word for word in text.split()]
    joined = "".join(word + rng.choice((" ", "  ", "\n", " ")) for word in words).strip()
    label = rng.choice(("", f"Problem {rng.randint(1, 30)}. ", f"{rng.randint(1, 30)}. ", "**Question 7:** "))
    return label + (joined.upper() if rng.random() < 0.1 else joined)
