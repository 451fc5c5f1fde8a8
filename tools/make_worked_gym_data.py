"""Write the data of a study on a pretrained model: reasoning-gym problems in four disjoint splits, with worked solutions.

    pip install reasoning-gym
    python tools/make_worked_gym_data.py --out runs/study-gpu/data --seed 1 --guesses 0.3

The SFT files have responses of a teacher who writes out each step, and for a share --guesses of the problems guesses
instead, wrong as a rule: as an unverified teacher's responses are. The tokenizer is that of the model that is trained. The
same flags and the same version of the package give the same bytes.
"""

from __future__ import annotations

import importlib
import os
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megatron_ring.config import cli
from megatron_ring.config.checks import require
from megatron_ring.data.files import PromptRecord, SFTRecord, write_prompts, write_sft
from megatron_ring.data.records import Message, prompt_from_json
from megatron_ring.errors import UserError, run_main
from megatron_ring.rewards.logic.reasoning_gym import convert
from megatron_ring.toy.worked_gym import SETTINGS, guess, response

if TYPE_CHECKING or __package__:
    from tools.make_reasoning_gym_data import MAX_DUPLICATES, item_seed
else:
    from make_reasoning_gym_data import MAX_DUPLICATES, item_seed


@dataclass(frozen=True, kw_only=True)
class WorkedGymOptions:
    """What to write."""

    out: Path
    """Folder to write to; made if missing."""
    seed: int = 1
    """Seed of every draw."""
    train: int = 12_000
    """SFT training problems."""
    validation: int = 200
    """SFT validation problems."""
    rl: int = 6_000
    """RL prompts."""
    heldout: int = 400
    """Evaluation prompts."""
    guesses: float = 0.3
    """Share (0 to 1) of the SFT responses that guess."""
    tasks: tuple[str, ...] = tuple(SETTINGS)
    """Tasks, in equal shares."""
    parts: tuple[str, ...] = ()
    """NAME=TASK,TASK: also write the RL prompts of some tasks as rl_prompts_NAME.jsonl, for training in stages."""
    repeated: int = 0
    """Also write the first so many SFT conversations as sft_repeated.jsonl, for training until they are known by heart."""

    def __post_init__(self) -> None:
        for name in ("train", "validation", "rl", "heldout"):
            require(getattr(self, name) >= 1, f"--{name} is {getattr(self, name)}, below 1")
        require(0 <= self.guesses <= 1, f"--guesses {self.guesses}: give a share from 0 to 1")
        for name in self.tasks:
            require(name in SETTINGS, f"--tasks {name}: no worked solutions; there are {', '.join(SETTINGS)}")
        require(len(set(self.tasks)) == len(self.tasks) > 0, "--tasks: name each once")
        require(0 <= self.repeated <= self.train, f"--repeated {self.repeated}: give 0 to --train ({self.train})")
        for name, tasks in self.split_parts().items():
            known = name.isidentifier() and set(tasks) <= set(self.tasks)
            require(known, f"--parts {name}={','.join(tasks)}: write NAME=TASK,TASK with tasks of --tasks")

    def split_parts(self) -> dict[str, list[str]]:
        """Tasks by the name of a part."""
        pairs = (text.partition("=") for text in self.parts)
        return {name: tasks.split(",") for name, _, tasks in pairs}


@dataclass(frozen=True)
class Worked:
    """A problem, its task, and both responses that a teacher may give."""

    task: str
    prompt: PromptRecord
    right: str
    guessed: str

    def conversation(self, guesses: float) -> SFTRecord:
        """Which response it is depends on the problem alone."""
        text = self.guessed if random.Random(f"guess/{self.prompt.id}").random() < guesses else self.right
        messages = (Message("user", self.prompt.messages[0].content), Message("assistant", text))
        return SFTRecord(messages, self.prompt.domain, self.task)


def draw(options: WorkedGymOptions, gym: Any, legs: dict[str, int]) -> Iterator[Worked]:
    """Problems without end, no prompt twice. Raises `UserError` for a task that is used up."""
    seen: set[str] = set()
    attempts = dict.fromkeys(options.tasks, 0)
    while True:
        for task in options.tasks:
            for _ in range(MAX_DUPLICATES):
                seed = item_seed(options.seed, task, attempts[task])
                attempts[task] += 1
                item = gym.create_dataset(task, size=1, seed=seed, **SETTINGS[task])[0]
                problem = worked(task, item, legs)
                if problem is not None and problem.prompt.messages[0].content not in seen:
                    break
            else:
                raise UserError(f"{task} has too few different problems ({len(seen)} drawn of all tasks): ask for fewer")
            seen.add(problem.prompt.messages[0].content)
            yield problem


def worked(task: str, item: Any, legs: dict[str, int]) -> Worked | None:
    """An item with its responses; None for one whose answer cannot be worked out, or breaks the rules that we add."""
    prompt = prompt_from_json(convert(task, item))
    try:
        right = response(task, item, legs)
    except ValueError:
        return None
    if "witness" not in prompt.metadata:
        return None
    return Worked(task, prompt, right, guess(task, item, random.Random(f"worked/{prompt.id}")))


def write(options: WorkedGymOptions, drawn: Iterator[Worked]) -> None:
    """All files, from the first problems on."""
    train, validation, rl, heldout = (
        list(islice(drawn, count)) for count in (options.train, options.validation, options.rl, options.heldout)
    )
    conversations = {"sft_train": train, "sft_validation": validation, "sft_repeated": train[: options.repeated]}
    prompts = {"rl_prompts": rl, "heldout": heldout}
    for name, tasks in options.split_parts().items():
        prompts[f"rl_prompts_{name}"] = [problem for problem in rl if problem.task in tasks]
    for name, problems in conversations.items():
        if problems:
            write_sft(options.out / f"{name}.jsonl", [problem.conversation(options.guesses) for problem in problems])
    for name, problems in prompts.items():
        write_prompts(options.out / f"{name}.jsonl", [problem.prompt for problem in problems])


def main() -> None:
    """Command line."""
    options = cli.parse(WorkedGymOptions, "make_worked_gym_data.py", (__doc__ or "").split("\n")[0])
    if os.environ.get("PYTHONHASHSEED") != "0":  # some tasks draw from sets, whose order would change from run to run
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "PYTHONHASHSEED": "0"})
    try:
        gym = importlib.import_module("reasoning_gym")
        legs = importlib.import_module("reasoning_gym.arithmetic.leg_counting").ANIMALS
    except ImportError:
        raise UserError("reasoning-gym is not installed: pip install reasoning-gym") from None
    write(options, draw(options, gym, legs))
    made = f"{options.train} SFT, {options.validation} validation, {options.rl} RL and {options.heldout} held-out problems"
    print(f"{options.out}: {made} of {', '.join(options.tasks)}")


if __name__ == "__main__":
    run_main(main)
