"""The study of C3PO against GRPO: its jobs, and which of their folders belong to which setting. Settings are those of
examples/tiny unless said otherwise. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_ring.analysis.study_c3po import COLLAPSE, STEADY, TIMED, page, steady_page

if TYPE_CHECKING or __package__:
    from tools.study_edition import TINY, Edition
    from tools.study_jobs import Checkpoint, Job
else:
    from study_edition import TINY, Edition
    from study_jobs import Checkpoint, Job

__all__ = ["FULL", "GPU", "QUICK", "Sizes", "jobs", "page", "steady_page"]


@dataclass(frozen=True)
class Sizes:
    """How much of everything. `repeated` of the SFT conversations are trained again for `repeat_epochs` epochs. `settings`:
    only these (none: all). `every`: steps of RL between held-out evaluations where it evaluates itself; `answers`: responses
    to each held-out problem."""

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
    every: int = 20
    answers: int = 1
    settings: tuple[str, ...] = ()
    edition: Edition = TINY

    @property
    def budget_flags(self) -> tuple[str, ...]:
        return ("--budget.tokens", str(self.budget), "--budget.scope", "global")


FULL = Sizes()
# A few steps of everything, to see that it works.
QUICK = Sizes(train=200, validation=40, rl=60, heldout=20, epochs=2, repeated=40, repeat_epochs=2, steps=3,
              timed_steps=3, prompts=4, fewer_prompts=3, samples=4, budget=200, new_tokens=30)  # fmt: skip
# On one GPU, from a pretrained start.
# Few prompts a step, so that how long responses are swings from step to step (docs/LOG.md, 2026-11-30). Φ lies below what
# nearly all steps bring, and is about what GRPO with one prompt trains on.
GPU = replace(FULL, train=4_000, rl=4_000, heldout=400, epochs=2, repeated=500, repeat_epochs=16, steps=50, timed_steps=12,
              prompts=2, fewer_prompts=1, samples=192, budget=15_360, new_tokens=256, answers=2)  # fmt: skip

# Of the study of FP8: what C3PO's runs get besides.
FP8 = {
    "fp8": ("--sampling.weights", "fp8"),
    "fp8-recomputed": ("--sampling.weights", "fp8", "--objective.old-logprobs", "recomputed"),
    "fp8-icepop": ("--sampling.weights", "fp8", "--objective.old-logprobs", "recomputed", "--correction.name", "icepop"),
}


def data_job(name: str, seed: int, sizes: Sizes, out: Path, *more: str) -> Job:
    counts = ("--train", str(sizes.train), "--validation", str(sizes.validation), "--rl", str(sizes.rl), "--heldout",
              str(sizes.heldout))  # fmt: skip
    return Job(name, (*sizes.edition.data(out / name, seed, counts, "0.4", sizes.repeated), *more))


def sft_job(name: str, seed: int, data: Path, run: Path, epochs: int, train: str, sizes: Sizes, needs: tuple[str, ...],
            start: Checkpoint | str | None = None) -> Job:  # fmt: skip
    """`start`: instead of the edition's."""
    origin = sizes.edition.origin if start is None else ("--init-from", start)
    command = ("-m", "megatron_ring.sft", "--run-dir", str(run), *origin, "--seed", str(seed), "--data.train",
               str(data / train), "--data.validation", str(data / "sft_validation.jsonl"), "--data.tokenizer",
               sizes.edition.tokenizer(data), *sizes.edition.batch, "--epochs", str(epochs), *sizes.edition.sft)  # fmt: skip
    return Job(name, command, needs)


def choice_job(name: str, run: Path, sizes: Sizes, needs: tuple[str, ...]) -> Job:
    return Job(name, ("tools/select_checkpoint.py", "--run", str(run), *sizes.edition.choice), needs)


def rl_job(name: str, seed: int, data: Path, run: Path, start: Checkpoint | str, sizes: Sizes, steps: int, prompts: int,
           needs: tuple[str, ...], *more: str, file: str = "rl_prompts.jsonl", alone: bool = False) -> Job:  # fmt: skip
    command: tuple[str | Checkpoint, ...]
    command = ("-m", "megatron_ring.rl", "--run-dir", str(run), "--init-from", start, "--seed", str(seed), "--data.prompts",
               str(data / file), "--data.tokenizer", sizes.edition.tokenizer(data), *sizes.edition.micro_batch,
               "--steps", str(steps), "--prompts-per-step", str(prompts), "--samples-per-prompt", str(sizes.samples),
               "--sampling.max-new-tokens", str(sizes.new_tokens), "--keep-last", "1", *sizes.edition.rl, *more)  # fmt: skip
    return Job(name, command, needs, alone)


def evaluation_job(name: str, seed: int, data: Path, start: Checkpoint | str, sizes: Sizes, out: Path,
                   needs: tuple[str, ...]) -> Job:  # fmt: skip
    flags = ("--sampling.temperature", "1", "--sampling.top-p", "1", "--sampling.max-new-tokens", str(sizes.new_tokens))
    command = ("-m", "megatron_ring.evaluate", "--checkpoint", start, "--prompts", str(data / "heldout.jsonl"),
               "--tokenizer", sizes.edition.tokenizer(data), "--out", str(out / name), "--seed", str(seed), *flags,
               *(("--samples-per-problem", str(sizes.answers)) if sizes.answers > 1 else ()),
               *sizes.edition.sampled)  # fmt: skip
    return Job(name, command, needs)


def jobs(out: Path, seeds: list[int], sizes: Sizes) -> list[Job]:
    """All jobs: seed by seed what need not be quiet, then the timed runs, which have the machine to themselves."""
    result = [job for seed in seeds for job in seed_jobs(out, seed, sizes, asked((*STEADY, *COLLAPSE), sizes))]
    for seed in seeds:
        root = out / f"seed-{seed}"
        chosen, needs = _chosen(root, f"seed-{seed}", sizes)
        for setting in asked(TIMED, sizes):
            objective, prompts = _objective(setting.removeprefix("timed-"), sizes)
            name = f"seed-{seed}/{setting}"
            result.append(rl_job(name, seed, root / "data", out / name, chosen, sizes, sizes.timed_steps, prompts, needs,
                                 *objective, *calm(sizes), "--save-every", str(sizes.timed_steps), alone=True))  # fmt: skip
    return result


def asked(settings: tuple[str, ...], sizes: Sizes) -> list[str]:
    """Those of `settings` that are to be run."""
    return [name for name in settings if not sizes.settings or name in sizes.settings]


def _chosen(root: Path, at: str, sizes: Sizes) -> tuple[Checkpoint | str, tuple[str, ...]]:
    """Where RL begins, and the job that must come first: the choice among SFT checkpoints, or the data alone."""
    if sizes.edition.tuned is not None:
        return str(sizes.edition.tuned), (f"{at}/data",)
    return Checkpoint(root / "sft", "chosen"), (f"{at}/choice",)


def seed_jobs(out: Path, seed: int, sizes: Sizes, settings: Sequence[str]) -> list[Job]:
    """Those of these settings, and what they need."""
    at = f"seed-{seed}"
    root, data = out / at, out / at / "data"
    start, first = _chosen(root, at, sizes)
    result = [data_job(f"{at}/data", seed, sizes, out)]
    if sizes.edition.tuned is None:
        sft = sft_job(f"{at}/sft", seed, data, root / "sft", sizes.epochs, "sft_train.jsonl", sizes, (f"{at}/data",))
        result += [sft, choice_job(f"{at}/choice", root / "sft", sizes, (f"{at}/sft",))]
    over = Checkpoint(root / "over")
    if any(name.startswith("over-") for name in settings):
        result += [
            sft_job(f"{at}/over", seed, data, root / "over", sizes.repeat_epochs, "sft_repeated.jsonl", sizes, first, start),
            evaluation_job(f"{at}/before-over", seed, data, over, sizes, out, (f"{at}/over",)),
        ]
    result.append(evaluation_job(f"{at}/before-chosen", seed, data, start, sizes, out, first))
    for setting in settings:
        origin, needs = (over, (f"{at}/over",)) if setting.startswith("over-") else (start, first)
        result += _setting_jobs(out, seed, sizes, setting, origin, needs)
    return result


def _setting_jobs(
    out: Path, seed: int, sizes: Sizes, setting: str, start: Checkpoint | str, needs: tuple[str, ...]
) -> list[Job]:
    """RL and, where it does not evaluate itself, the evaluation of its last checkpoint."""
    name, data = f"seed-{seed}/{setting}", out / f"seed-{seed}" / "data"
    of = _half(sizes) if setting in COLLAPSE else sizes
    objective, prompts = _objective(setting.removeprefix("over-").removeprefix("chosen-"), of)
    more = (*objective, *(hot(sizes) if setting in COLLAPSE else calm(sizes)))
    if sizes.edition.start is not None:  # an evaluation of its own would cost another start of a process, and a checkpoint
        return [rl_job(name, seed, data, out / name, start, sizes, sizes.steps, prompts, needs, *more,
                       *evaluated(data, sizes), "--save-every", str(sizes.steps))]  # fmt: skip
    return [rl_job(name, seed, data, out / name, start, sizes, sizes.steps, prompts, needs, *more),
            evaluation_job(f"{name}-after", seed, data, Checkpoint(out / name), sizes, out, (name,))]  # fmt: skip


def evaluated(data: Path, sizes: Sizes) -> tuple[str, ...]:
    """Flags of RL that evaluates itself, as `evaluation_job` does."""
    return ("--evaluation.prompts", str(data / "heldout.jsonl"), "--evaluation.every", str(sizes.every),
            "--evaluation.samples-per-problem", str(sizes.answers), "--evaluation.top-p", "1")  # fmt: skip


def _objective(name: str, sizes: Sizes) -> tuple[tuple[str, ...], int]:
    """Flags of the objective and the prompts of a step. With `fewer_prompts` GRPO trains on about as many tokens as Φ."""
    if name == "c3po" or name in FP8:
        return ("--objective.name", "c3po", *sizes.budget_flags, *FP8.get(name, ())), sizes.prompts
    return ("--objective.name", "grpo"), sizes.fewer_prompts if name == "grpo-fewer" else sizes.prompts


def calm(sizes: Sizes) -> tuple[str, ...]:
    """Rate and KL weight of the edition; on a CPU those of examples/tiny."""
    return ("--objective.kl-beta", sizes.edition.kl, "--optimizer.lr", sizes.edition.rate, "--optimizer.schedule", "cosine")


def hot(sizes: Sizes) -> tuple[str, ...]:
    """The report's KL weight and a constant rate, five times the usual one, to provoke a collapse."""
    return ("--objective.kl-beta", "1e-3", "--optimizer.lr", sizes.edition.hot_rate, "--optimizer.schedule", "constant")


def _half(sizes: Sizes) -> Sizes:
    """Steps of half the size, whose gradient is noisier."""
    return replace(sizes, prompts=sizes.prompts // 2, budget=sizes.budget // 2)
