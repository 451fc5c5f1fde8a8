"""The study of general RL in small: rule verifiers and a reward model, with a replay share of reasoning and without.
Both start from the same reasoning policy. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_ring.analysis.study_general import ALONE, REPLAY, Page, general_page

if TYPE_CHECKING or __package__:
    from tools.general_result import measured
    from tools.study_jobs import Checkpoint, Job
else:
    from general_result import measured
    from study_jobs import Checkpoint, Job

__all__ = ["FULL", "QUICK", "jobs", "page"]

FOLDERS = {REPLAY: "replay", ALONE: "alone"}
HELDOUT = "general_heldout_all.jsonl"


@dataclass(frozen=True)
class Sizes:
    """How much of everything. `problems`: of reasoning for SFT; `tasks`: general ones."""

    problems: int = 1800
    tasks: int = 700
    pairs: int = 3200
    rl: int = 600
    heldout: int = 300
    epochs: int = 8
    reasoning_steps: int = 20
    steps: int = 30
    prompts: int = 24
    samples: int = 16
    budget: int = 6144
    new_tokens: int = 80
    evaluated: int = 4


FULL = Sizes()
QUICK = Sizes(problems=200, tasks=60, pairs=40, rl=60, heldout=20, epochs=1, reasoning_steps=2, steps=2, prompts=4,
              samples=4, budget=200, new_tokens=24, evaluated=1)  # fmt: skip


def jobs(out: Path, seeds: Sequence[int], sizes: Sizes) -> list[Job]:
    """All jobs, seed by seed."""
    return [job for seed in seeds for job in _Seed(out, seed, sizes).jobs()]


def page(out: Path, seeds: Sequence[int]) -> Page:
    """Tables, figures and numbers of the finished study in `out`. Raises UserError for what is missing there."""
    found: dict[int, dict[str, Any]] = {}
    for seed in seeds:
        root = out / f"seed-{seed}"
        evaluations = {"before": "before", REPLAY: "replay-after", ALONE: "alone-after"}
        found[seed] = {name: measured(root / folder, root / "data" / HELDOUT) for name, folder in evaluations.items()}
    return general_page(out, found)


@dataclass(frozen=True)
class _Seed:
    """The jobs of one seed."""

    out: Path
    seed: int
    sizes: Sizes

    @property
    def at(self) -> str:
        return f"seed-{self.seed}"

    def folder(self, name: str) -> Path:
        return self.out / self.at / name

    def jobs(self) -> list[Job]:
        sft, reasoning = Checkpoint(self.folder("sft")), Checkpoint(self.folder("reasoning"))
        result = [
            *self._data(),
            self._sft(),
            self._reward(sft),
            self._rl("reasoning", sft, self.sizes.reasoning_steps, "rl_prompts.jsonl", "sft"),
            self._evaluation("before", reasoning, "reasoning"),
        ]
        for name in FOLDERS.values():
            steps, file = self.sizes.steps, f"general_{name}.json"
            result.append(self._rl(name, reasoning, steps, file, "reasoning", *self._reward_model(), also=("reward",)))
        for name in FOLDERS.values():
            result.append(self._evaluation(f"{name}-after", Checkpoint(self.folder(name)), name))
        return result

    def _job(self, name: str, needs: Sequence[str], *command: str | Checkpoint) -> Job:
        return Job(f"{self.at}/{name}", (*command, "--seed", str(self.seed)), tuple(f"{self.at}/{need}" for need in needs))

    def _data(self) -> list[Job]:
        sizes, data = self.sizes, self.folder("data")
        reasoning = ("--train", str(sizes.problems), "--validation", str(max(20, sizes.problems // 20)), "--rl",
                     str(sizes.rl), "--heldout", str(sizes.heldout), "--guesses", "0.4", "--families", "linear",
                     "--difficulty", "linear.solution=9", "linear.constant=60")  # fmt: skip
        general = ("--train", str(sizes.tasks), "--pairs", str(sizes.pairs), "--rl", str(sizes.rl), "--heldout",
                   str(sizes.heldout))  # fmt: skip
        return [
            self._job("data", (), "tools/make_tiny_data.py", "--out", str(data), *reasoning),
            self._job("general-data", ("data",), "tools/make_general_data.py", "--data", str(data), *general),
        ]

    def _tokenizer(self) -> tuple[str, ...]:
        return ("--data.tokenizer", str(self.folder("data") / "general_tokenizer"))

    def _sft(self) -> Job:
        data = self.folder("data")
        return self._job("sft", ("general-data",), "-m", "megatron_ring.sft", "--run-dir", str(self.folder("sft")),
                         "--preset", "ring-tiny", "--data.train", str(data / "general_sft_train.jsonl"), *self._tokenizer(),
                         "--data.context-length", "512", "--data.global-batch", "1", "--epochs", str(self.sizes.epochs),
                         "--optimizer.lr", "1e-3", *_ROUTER)  # fmt: skip

    def _reward(self, start: Checkpoint) -> Job:
        data = self.folder("data")
        return self._job("reward", ("sft",), "-m", "megatron_ring.reward", "--run-dir", str(self.folder("reward")),
                         "--init-from", start, "--data.train", str(data / "general_preferences_train.jsonl"),
                         "--data.validation", str(data / "general_preferences_validation.jsonl"), *self._tokenizer(),
                         "--data.context-length", "512", "--data.global-batch", "1", "--epochs", "1",
                         "--optimizer.lr", "5e-4", *_ROUTER)  # fmt: skip

    def _reward_model(self) -> tuple[str | Checkpoint, ...]:
        return ("--rewards.reward-model", Checkpoint(self.folder("reward")))

    def _rl(self, name: str, start: Checkpoint, steps: int, file: str, needs: str, *more: str | Checkpoint,
            also: Sequence[str] = ()) -> Job:  # fmt: skip
        sizes = self.sizes
        return self._job(name, (needs, *also), "-m", "megatron_ring.rl", "--run-dir", str(self.folder(name)), "--init-from",
                         start, "--data.prompts", str(self.folder("data") / file), *self._tokenizer(),
                         "--data.micro-batch-tokens", "2048", "--steps", str(steps), "--prompts-per-step",
                         str(sizes.prompts), "--samples-per-prompt", str(sizes.samples), "--sampling.max-new-tokens",
                         str(sizes.new_tokens), "--budget.tokens", str(sizes.budget), "--budget.scope", "global",
                         "--objective.kl-beta", "0.02",
                         "--optimizer.lr", "2e-4", "--optimizer.beta2", "0.99", "--keep-last", "1", "--rewards.workers", "1",
                         *_ROUTER, *more)  # fmt: skip

    def _evaluation(self, name: str, checkpoint: Checkpoint, needs: str) -> Job:
        data = self.folder("data")
        return self._job(name, (needs, "reward"), "-m", "megatron_ring.evaluate", "--checkpoint", checkpoint, "--prompts",
                         str(data / HELDOUT), "--tokenizer", str(data / "general_tokenizer"), "--out",
                         str(self.folder(name)),
                         "--samples-per-problem", str(self.sizes.evaluated), "--sampling.temperature", "1",
                         "--sampling.top-p", "1", "--sampling.max-new-tokens", str(self.sizes.new_tokens),
                         "--rewards.workers", "1", *self._reward_model())  # fmt: skip


_ROUTER = ("--router.balance", "1e-2", "--router.z", "1e-4")
