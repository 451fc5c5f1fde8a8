"""Checks of duplicates and overlap that tools/check_curation.py runs: against brute force, templates, other spellings."""

from __future__ import annotations

import json
import random
import re
import tempfile
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from megatron_ring.curation.meaning import meaning
from megatron_ring.curation.near import jaccard, word_grams
from megatron_ring.curation.options import Decontaminate, Exact, Near
from megatron_ring.curation.pipeline import run_recipe
from megatron_ring.curation.recipe import Recipe, Source
from megatron_ring.curation.text import words
from tools.planted_rows import near_copy, respelled, turned

Row = dict[str, Any]
DOCUMENTS = 20_000


def ledger_of(rows: list[Row], step: Exact | Near | Decontaminate, folder: Path) -> dict[str, tuple[str, str]]:
    """Reason and evidence of each row that a step drops, by its line number."""
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    run_recipe(Recipe((Source("rows", (path,)),), (step,)), folder / "out", 1, lambda text: None)
    entries = [json.loads(line) for line in (folder / "out" / "ledger.jsonl").read_text().splitlines()]
    return {entry["id"].removeprefix("rows-"): (entry["reason"], entry["evidence"]) for entry in entries}


def brute_pairs(texts: list[str], threshold: float) -> set[tuple[int, int]]:
    """All pairs of texts that ask the same (`Meaning.fits`) with a Jaccard similarity of word 5-grams from `threshold` on:
    by counting common n-grams of every pair that has one."""
    tokens = [words(text) for text in texts]
    grams = [frozenset(word_grams(found, Near.words)) for found in tokens]
    meanings = [meaning(found) for found in tokens]
    holders: dict[str, list[int]] = defaultdict(list)
    pairs: set[tuple[int, int]] = set()
    for place, found in enumerate(grams):
        common = Counter(other for gram in found for other in holders[gram])
        for other, shared in common.items():
            if shared / (len(found) + len(grams[other]) - shared) >= threshold and meanings[place].fits(meanings[other]):
                pairs.add((other, place))
        for gram in found:
            holders[gram].append(place)
    return pairs


def check_near(rows: list[Row], seed: int) -> dict[str, Any]:
    """Pairs found of those that brute force finds among 20,000 problems, and how many of the drops are right."""
    rng = random.Random(seed)
    texts = [row["problem"] for row in rows]
    while len(texts) < DOCUMENTS:
        text = rng.choice(rows)["problem"]
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            text = near_copy(text, rng)
        texts.append(text)
    step = Near()
    pairs = brute_pairs(texts, step.threshold)
    with tempfile.TemporaryDirectory() as name:
        dropped = ledger_of([{"problem": text, "answer": "1"} for text in texts], step, Path(name))
    gone = {int(number) - 1 for number in dropped}
    caught = sum(one in gone or other in gone for one, other in pairs)
    right = 0
    for number, (_, evidence) in dropped.items():
        other = int(evidence.rpartition("rows-")[2]) - 1
        one, two = (frozenset(word_grams(words(texts[place]), step.words)) for place in (int(number) - 1, other))
        right += jaccard(one, two) >= step.threshold
    both_stay = len(pairs) - caught
    return {
        "documents": len(texts),
        "threshold": step.threshold,
        "pairs": len(pairs),
        "recall": round(caught / len(pairs), 4),
        "both_stay": both_stay,
        "dropped": len(dropped),
        "precision": round(right / max(1, len(dropped)), 4),
    }


def check_templates(rows: list[Row], seed: int) -> dict[str, Any]:
    """Problems of one template with other numbers stay, each of the problems five times over. So do problems of which one
    word was replaced by its opposite, beside the original."""
    rng = random.Random(seed)
    made: dict[str, Row] = {}
    for row in rows[:2000]:
        for _ in range(5):
            text = re.sub(r"\d+", lambda _: str(rng.randint(2, 999)), row["problem"])
            made.setdefault(" ".join(words(text)), {"problem": text, "answer": str(rng.randint(1, 99))})
    pairs = [(row["problem"], turned(row["problem"], rng)) for row in rows[:2000]]
    turns = [(text, other) for text, other in pairs if other is not None and " ".join(words(text)) != " ".join(words(other))]
    templates = [row for key, row in made.items() if re.search(r"\d", key)]
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "a").mkdir()
        (Path(name) / "b").mkdir()
        dropped = len(ledger_of(templates, Near(), Path(name) / "a")) + len(ledger_of(templates, Exact(), Path(name) / "b"))
        (Path(name) / "c").mkdir()
        both = [{"problem": text, "answer": "1"} for pair in turns for text in pair]
        lost = len(ledger_of(both, Near(), Path(name) / "c"))
    return {"rows": len(templates), "kept": round(1 - dropped / len(templates), 5), "dropped": dropped,
            "turned": len(turns), "turned_kept": round(1 - lost / len(turns), 5), "turned_dropped": lost}  # fmt: skip


_MATH = (
    ("Let $x$ and $y$ be real numbers such that $x^2 + y^2 = {a}$ and $x + y = {b}$. Find the value of $x^3 + y^3$.",
     r"Let \( u \) and \( w \) be real numbers such that \(u^{{2}}+w^{{2}}={a}\) and \(u+w={b}\). Find the value of "
     r"\(u^{{3}} + w^{{3}}\)."),
    ("How many positive integers $n$ less than {a} are such that $\\frac{{n}}{{{b}}}$ is a terminating decimal?",
     "How many positive integers \\(m\\) less than ${a}$ are such that $\\dfrac{{m}}{{{b}}}$ is a terminating decimal ?"),
    ("In triangle $ABC$, $AB = {a}$ and the altitude from $C$ has length ${b}$. What is the area of triangle $ABC$ in "
     "square units?",
     "In triangle $ABC,$ $AB\\,=\\,{a}$ and the altitude from $C$ has length ${b}.$\n What is the area of triangle "
     "$ABC$ in square units?"),
    ("Find the remainder when $7^{{{a}}} + 3^{{{b}}}$ is divided by $100$, and write your answer as a two digit number.",
     "Find the remainder when $7 ^ {{{a}}} + 3 ^ {{{b}}}$ is divided by $100$ , and write your answer as a two digit "
     "number ."),
)  # fmt: skip


def check_spellings(rows: list[Row], seed: int, folder: Path) -> dict[str, Any]:
    """Benchmark problems in other spellings are found; in other words they are not, which is measured too."""
    rng = random.Random(seed)
    held, others = rows[:400], rows[400:4400]
    planted: dict[str, list[str]] = defaultdict(list)
    bench = [row["problem"] for row in held]
    for text in bench:
        planted["white space, capitals, labels, $"].append(respelled(text, rng))
        planted["one word of it replaced"].append(near_copy(text, rng))
        planted["inside a longer text"].append(f"Here is a task for you to solve. {text} Explain every step of the way.")
        planted["its last sentence is missing"].append(text.rpartition(". ")[0] or text)
        planted["every third word replaced (a paraphrase)"].append(_paraphrase(text))
    for number in range(200):
        original, spelt = _MATH[number % len(_MATH)]
        values = {"a": 1000 + number, "b": 30 + number}
        bench.append(original.format(**values))
        planted["spacing of LaTeX, renamed variables"].append(spelt.format(**values))
    target = folder / "spellings"
    target.mkdir()
    (target / "held.jsonl").write_text("".join(json.dumps({"problem": text, "answer": "?"}) + "\n" for text in bench))
    step = Decontaminate(benchmarks=(target / "held.jsonl",))
    found = {}
    for place, (name, texts) in enumerate(
        [*planted.items(), ("nothing of it (false drops)", [row["problem"] for row in others])]
    ):
        (target / str(place)).mkdir()
        ledger = ledger_of([{"problem": text, "answer": "1"} for text in texts], step, target / str(place))
        found[name] = round(len(ledger) / len(texts), 5)
    (target / "any").mkdir()
    strict = Decontaminate(benchmarks=step.benchmarks, any=True)
    ledger = ledger_of([{"problem": row["problem"], "answer": "1"} for row in others], strict, target / "any")
    return {"found": found, "false_drops_of_any_8_gram": round(len(ledger) / len(others), 5)}


def _paraphrase(text: str) -> str:
    """No run of three words stays."""
    return " ".join("other" if place % 3 == 2 else word for place, word in enumerate(text.split()))
