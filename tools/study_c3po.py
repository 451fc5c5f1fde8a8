"""The study of C3PO against GRPO: its jobs, and which of their folders belong to which setting. Settings are those of
examples/tiny unless said otherwise. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_ring.analysis.study_c3po import COLLAPSE, STEADY, TIMED, page

if TYPE_CHECKING or __package__:
    from tools.study_jobs import Checkpoint, Job
else:
    from study_jobs import Checkpoint, Job

DIFFICULTY = ("arithmetic.terms=3", "linear.solution=9", "linear.constant=20", "division.dividend=499", "division.gcd=99",
              "units.speed=49", "units.whole=12")  # fmt: skip
__all__ = ["FULL", "QUICK", "Sizes", "jobs", "page"]

ENTROPY_BAND = ("0.15", "0.30")


@dataclass(frozen=True)
class Sizes:
    """How much of everything. `repeated` of the SFT conversations are trained again for `repeat_epochs` epochs."""

    train: int = 5600
    validation: int = 200
    rl: int = 1400
    heldout: int = 600
    epochs: int = 12
    repeated: int = 700
    repeat_epochs: int = 48
    steps: int = 60
    timed_steps: int = 24
    prompts: int = 24
    fewer_prompts: int = 17
    samples: int = 16
    budget: int = 6144
    new_tokens: int = 80

    @property
    def budget_flags(self) -> tuple[str, ...]:
        return ("--budget.tokens", str(self.budget), "--budget.scope", "global")


FULL = Sizes()
# A few steps of everything, to see that it works.
QUICK = Sizes(train=200, validation=40, rl=60, heldout=20, epochs=2, repeated=40, repeat_epochs=2, steps=3,
              timed_steps=3, prompts=4, fewer_prompts=3, samples=4, budget=200, new_tokens=30)  # fmt: skip


def data_job(name: str, seed: int, sizes: Sizes, out: Path, *more: str) -> Job:
    flags = ("--train", str(sizes.train), "--validation", str(sizes.validation), "--rl", str(sizes.rl), "--heldout",
             str(sizes.heldout), "--guesses", "0.4", "--repeated", str(sizes.repeated))  # fmt: skip
    command = ("tools/make_tiny_data.py", "--out", str(out / name), "--seed", str(seed), *flags, "--difficulty", *DIFFICULTY)
    return Job(name, (*command, *more))


def sft_job(name: str, seed: int, data: Path, run: Path, epochs: int, train: str, start: tuple[str | Checkpoint, ...],
            needs: tuple[str, ...]) -> Job:  # fmt: skip
    command = ("-m", "megatron_ring.sft", "--run-dir", str(run), *start, "--seed", str(seed), "--data.train",
               str(data / train), "--data.validation", str(data / "sft_validation.jsonl"), "--data.tokenizer",
               str(data / "tokenizer"), "--data.context-length", "512", "--data.global-batch", "1", "--epochs", str(epochs),
               "--optimizer.lr", "1e-3", "--router.balance", "1e-2", "--router.z", "1e-4")  # fmt: skip
    return Job(name, command, needs)


def choice_job(name: str, run: Path, needs: tuple[str, ...]) -> Job:
    low, high = ENTROPY_BAND
    flags = ("--run", str(run), "--entropy-low", low, "--entropy-high", high)
    return Job(name, ("tools/select_checkpoint.py", *flags), needs)


def rl_job(name: str, seed: int, data: Path, run: Path, start: Checkpoint, sizes: Sizes, steps: int, prompts: int,
           needs: tuple[str, ...], *more: str, file: str = "rl_prompts.jsonl", alone: bool = False) -> Job:  # fmt: skip
    command: tuple[str | Checkpoint, ...]
    command = ("-m", "megatron_ring.rl", "--run-dir", str(run), "--init-from", start, "--seed", str(seed), "--data.prompts",
               str(data / file), "--data.tokenizer", str(data / "tokenizer"), "--data.micro-batch-tokens", "2048", "--steps",
               str(steps), "--prompts-per-step", str(prompts), "--samples-per-prompt", str(sizes.samples),
               "--sampling.max-new-tokens", str(sizes.new_tokens), "--keep-last", "1", "--optimizer.beta2", "0.99",
               "--router.balance", "1e-2", "--router.z", "1e-4", "--rewards.workers", "1", *more)  # fmt: skip
    return Job(name, command, needs, alone)


def evaluation_job(name: str, seed: int, data: Path, start: Checkpoint, sizes: Sizes, out: Path,
                   needs: tuple[str, ...]) -> Job:  # fmt: skip
    flags = ("--sampling.temperature", "1", "--sampling.top-p", "1", "--sampling.max-new-tokens", str(sizes.new_tokens))
    command = ("-m", "megatron_ring.evaluate", "--checkpoint", start, "--prompts", str(data / "heldout.jsonl"),
               "--tokenizer", str(data / "tokenizer"), "--out", str(out / name), "--seed", str(seed), *flags,
               "--rewards.workers", "1")  # fmt: skip
    return Job(name, command, needs)


def jobs(out: Path, seeds: list[int], sizes: Sizes) -> list[Job]:
    """All jobs: seed by seed what need not be quiet, then the timed runs, which have the machine to themselves."""
    result = [job for seed in seeds for job in _seed_jobs(out, seed, sizes)]
    for seed in seeds:
        root, needs = out / f"seed-{seed}", (f"seed-{seed}/choice",)
        chosen = Checkpoint(root / "sft", "chosen")
        for setting in TIMED:
            objective, prompts = _objective(setting.removeprefix("timed-"), sizes)
            name = f"seed-{seed}/{setting}"
            result.append(rl_job(name, seed, root / "data", out / name, chosen, sizes, sizes.timed_steps, prompts, needs,
                                 *objective, *_calm(), "--save-every", str(sizes.timed_steps), alone=True))  # fmt: skip
    return result


def _seed_jobs(out: Path, seed: int, sizes: Sizes) -> list[Job]:
    at = f"seed-{seed}"
    root, data = out / at, out / at / "data"
    sft = Checkpoint(root / "sft", "chosen")
    over = Checkpoint(root / "over")
    result = [
        data_job(f"{at}/data", seed, sizes, out),
        sft_job(f"{at}/sft", seed, data, root / "sft", sizes.epochs, "sft_train.jsonl", ("--preset", "ring-tiny"),
                (f"{at}/data",)),
        choice_job(f"{at}/choice", root / "sft", (f"{at}/sft",)),
        sft_job(f"{at}/over", seed, data, root / "over", sizes.repeat_epochs, "sft_repeated.jsonl", ("--init-from", sft),
                (f"{at}/choice",)),
        evaluation_job(f"{at}/before-chosen", seed, data, sft, sizes, out, (f"{at}/choice",)),
        evaluation_job(f"{at}/before-over", seed, data, over, sizes, out, (f"{at}/over",)),
    ]  # fmt: skip
    for setting in (*STEADY, *COLLAPSE):
        start, needs = (over, f"{at}/over") if setting.startswith("over-") else (sft, f"{at}/choice")
        of = _half(sizes) if setting in COLLAPSE else sizes
        objective, prompts = _objective(setting.removeprefix("over-").removeprefix("chosen-"), of)
        name = f"{at}/{setting}"
        result.append(rl_job(name, seed, data, out / name, start, sizes, sizes.steps, prompts, (needs,), *objective,
                             *(_hot() if setting in COLLAPSE else _calm())))  # fmt: skip
        result.append(evaluation_job(f"{name}-after", seed, data, Checkpoint(out / name), sizes, out, (name,)))
    return result


def _objective(name: str, sizes: Sizes) -> tuple[tuple[str, ...], int]:
    """Flags of the objective and the prompts of a step. With `fewer_prompts` GRPO trains on about as many tokens as Φ."""
    if name == "c3po":
        return ("--objective.name", "c3po", *sizes.budget_flags), sizes.prompts
    return ("--objective.name", "grpo"), sizes.fewer_prompts if name == "grpo-fewer" else sizes.prompts


def _calm() -> tuple[str, ...]:
    """Rate and KL of examples/tiny."""
    return ("--objective.kl-beta", "0.05", "--optimizer.lr", "2e-4", "--optimizer.schedule", "cosine")


def _hot() -> tuple[str, ...]:
    """The report's KL weight and a constant rate, five times that of examples/tiny: to provoke a collapse."""
    return ("--objective.kl-beta", "1e-3", "--optimizer.lr", "1e-3", "--optimizer.schedule", "constant")


def _half(sizes: Sizes) -> Sizes:
    """Steps of half the size, whose gradient is noisier."""
    return replace(sizes, prompts=sizes.prompts // 2, budget=sizes.budget // 2)
