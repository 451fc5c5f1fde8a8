"""Small general tasks of three kinds, so that a reward model and rule verifiers can be tried together.

| kind     | domain         | the task                                     | what decides                          |
|----------|----------------|----------------------------------------------|---------------------------------------|
| `open`   | `reward-model` | describe a thing                             | `quality`, which only preferences show |
| `answer` | `qa/exact`     | a question about one of two things           | the reference                         |
| `rules`  | `instructions` | name some things, one a line, without one    | rules that can be checked             |

Answers for fine-tuning are those of a careless teacher: descriptions that leave facts out, say them twice or ramble, answers
about the other thing, lists of another length. Reinforcement can find out which of them are better.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from megatron_ring.errors import UserError

KINDS = ("open", "answer", "rules")
_COLOURS = ("red", "blue", "green", "black", "white", "grey")
_THINGS = ("box", "cup", "chair", "lamp", "coat", "bell", "rope", "drum")
_CITIES = ("Rome", "Oslo", "Lima", "Bern", "Cairo", "Delhi", "Paris", "Quito")
_RAMBLING = ("It is very nice indeed.", "There is much to say about it.", "Many people know it.", "So it is, as they say.")
_TOPICS = {
    "colours": ("red", "blue", "green", "black", "white", "grey", "pink", "brown"),
    "cities": ("rome", "oslo", "lima", "bern", "cairo", "delhi", "paris", "quito"),
    "animals": ("cat", "dog", "cow", "hen", "fox", "owl", "bee", "pig"),
    "fruits": ("apple", "pear", "plum", "fig", "lemon", "grape", "melon", "kiwi"),
    "tools": ("saw", "axe", "file", "drill", "hammer", "knife", "brush", "spade"),
    "games": ("chess", "golf", "tennis", "cards", "darts", "polo", "judo", "rugby"),
}


@dataclass(frozen=True)
class GeneralTask:
    """One task.

    Attributes:
        id: a hash of the prompt.
        kind: one of `KINDS`.
        domain: what scores it.
        prompt: as asked.
        answer: the reference of the domain's verifier.
        best: an answer that cannot be better.
        careless: draws one of the teacher's answers.
    """

    id: str
    kind: str
    domain: str
    prompt: str
    answer: Any
    best: str
    careless: Callable[[random.Random], str] = field(compare=False)


def draw_tasks(seed: int, kind: str, count: int) -> list[GeneralTask]:
    """Tasks with prompts that differ from each other; the same arguments give the same tasks.

    Raises:
        UserError: an unknown kind, or fewer than `count` different prompts.
    """
    if kind not in KINDS:
        raise UserError(f"unknown kind of task {kind!r}: use one of {', '.join(KINDS)}")
    rng = random.Random(f"{seed}/general/{kind}")
    found: dict[str, GeneralTask] = {}
    in_vain = 0
    while len(found) < count:
        task = _DRAW[kind](rng)
        in_vain = in_vain + 1 if task.prompt in found else 0
        if in_vain == 2_000:
            raise UserError(f"there are too few different tasks of the kind {kind!r}: ask for {len(found)} or fewer")
        found.setdefault(task.prompt, task)
    return list(found.values())


def quality(best: str, response: str) -> float:
    """What the planted preferences are about: of a description, 1 for each sentence of `best`, wherever it stands; −1 for
    each other one, also one that is said again; −1 for an end without a full stop. At most the sentences of `best`."""
    wanted = set(_sentences(best))
    value = 0.0 if response.rstrip().endswith(".") else -1.0
    for sentence in _sentences(response):
        value += 1 if sentence in wanted else -1
        wanted.discard(sentence)
    return value


def preference(task: GeneralTask, rng: random.Random) -> tuple[str, str] | None:
    """Two of the teacher's answers, the better one first; None where one try in twenty finds none that differ in quality."""
    for _ in range(20):
        pair = [task.careless(rng) for _ in range(2)]
        first, second = (quality(task.best, answer) for answer in pair)
        if first != second:
            return (pair[0], pair[1]) if first > second else (pair[1], pair[0])
    return None


def _sentences(text: str) -> list[str]:
    return [" ".join(part.split()) for part in text.replace("\n", " ").split(".") if part.strip()]


def _open(rng: random.Random) -> GeneralTask:
    colour, thing, city, weight = rng.choice(_COLOURS), rng.choice(_THINGS), rng.choice(_CITIES), rng.randint(2, 98)
    facts = (f"It is a {colour} {thing}.", f"It weighs {weight} kg.", f"It comes from {city}.")

    def careless(draw: random.Random) -> str:
        said = [fact for fact in facts if draw.random() < 0.6]
        if said and draw.random() < 0.25:
            said.insert(draw.randrange(len(said) + 1), draw.choice(said))
        if not said or draw.random() < 0.35:
            said.insert(draw.randrange(len(said) + 1), draw.choice(_RAMBLING))
        text = " ".join(said)
        return text[:-1] if draw.random() < 0.1 else text

    return _task("open", "reward-model", f"Describe: {colour} {thing}, {weight} kg, {city}.", "", " ".join(facts), careless)


def _answer(rng: random.Random) -> GeneralTask:
    things, colours = rng.sample(_THINGS, 2), rng.sample(_COLOURS, 2)
    weights, asked = rng.sample(range(2, 99), 2), rng.randrange(2)
    listed = ", ".join(f"{c} {t} {w} kg" for c, t, w in zip(colours, things, weights, strict=True))
    if rng.random() < 0.5:
        question, answers = f"How heavy is the {things[asked]}?", [f"{weight} kg" for weight in weights]
    else:
        question, answers = f"What colour is the {things[asked]}?", colours

    def careless(draw: random.Random) -> str:
        return f"Answer: {answers[asked if draw.random() < 0.6 else 1 - asked]}"

    right = answers[asked]
    return _task("answer", "qa/exact", f"{listed[0].upper()}{listed[1:]}. {question}", right, f"Answer: {right}", careless)


def _rules(rng: random.Random) -> GeneralTask:
    topic = rng.choice(list(_TOPICS))
    without, number = rng.choice(_TOPICS[topic]), rng.randint(2, 6)
    others = [word for word in _TOPICS[topic] if word != without]
    rules = {
        "instruction_id_list": ["ring:line_count", "ring:unique_words", "keywords:forbidden_words"],
        "kwargs": [{"num_lines": number}, {"num_words": number}, {"forbidden_words": [without]}],
    }

    def careless(draw: random.Random) -> str:
        wanted = number if draw.random() < 0.5 else draw.choice([n for n in (1, 2, 3, 4, 5, 6, 7) if n != number])
        return "\n".join(draw.sample(_TOPICS[topic] if draw.random() < 0.3 else others, wanted))

    prompt = f"Name {number} {topic}, one a line, without {without}."
    return _task("rules", "instructions", prompt, rules, "\n".join(others[:number]), careless)


def _task(
    kind: str, domain: str, prompt: str, answer: Any, best: str, careless: Callable[[random.Random], str]
) -> GeneralTask:
    digest = hashlib.blake2b(prompt.encode(), digest_size=8).hexdigest()
    return GeneralTask(f"{kind}-{digest}", kind, domain, prompt, answer, best, careless)


_DRAW: dict[str, Callable[[random.Random], GeneralTask]] = {"open": _open, "answer": _answer, "rules": _rules}


def split(tasks: Sequence[GeneralTask], sizes: Sequence[int]) -> list[list[GeneralTask]]:
    """The tasks in order, cut into parts of these sizes."""
    parts, begin = [], 0
    for size in sizes:
        parts.append(list(tasks[begin : begin + size]))
        begin += size
    return parts
