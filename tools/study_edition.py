"""What a study trains and on which problems: `ring-tiny` from random weights on generated problems, on a CPU; or a
pretrained start on reasoning-gym's problems, on one GPU. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from megatron_ring.data.files import read_prompts
from megatron_ring.data.schedule import solve_rate

DIFFICULTY = ("arithmetic.terms=3", "linear.solution=9", "linear.constant=20", "division.dividend=499", "division.gcd=99",
              "units.speed=49", "units.whole=12")  # fmt: skip
MATH, APPLIED = ("arithmetic", "linear", "division"), ("units", "code")
GYM_MATH = ("basic_arithmetic", "gcd", "lcm", "base_conversion")
GYM_APPLIED = ("leg_counting", "letter_counting", "number_filtering", "countdown")
GYM_GUESSES = "0.3"  # share of the teacher's solutions that are guessed, and wrong as a rule
RATED = (0.1, 0.9)  # solve rates of problems of a pool that RL trains on
Words = tuple[str, ...]


@dataclass(frozen=True)
class Edition:
    """Flags that depend on where the runs start.

    Attributes:
        start: a pretrained model, checkpoint or published folder with its tokenizer; None: `ring-tiny`, random weights.
        pool: folder of problems that each seed draws its data from; None: fresh problems for each seed.
        tuned: a checkpoint of the start after SFT. RL of C3PO's study and of the stages begins there, without SFT of its
            own.
    """

    start: Path | None = None
    pool: Path | None = None
    tuned: Path | None = None

    @property
    def origin(self) -> Words:
        return ("--preset", "ring-tiny") if self.start is None else ("--init-from", str(self.start))

    def tokenizer(self, data: Path) -> str:
        return str(data / "tokenizer" if self.start is None else self.start)

    def data(self, out: Path, seed: int, counts: Words, guesses: str, repeated: int) -> Words:
        """The command that writes the data."""
        if self.start is None:
            flags = ("--guesses", guesses, "--repeated", str(repeated), "--difficulty", *DIFFICULTY)
            return ("tools/make_tiny_data.py", "--out", str(out), "--seed", str(seed), *counts, *flags)
        more = ("--repeated", str(repeated)) if repeated else ()
        common = ("--out", str(out), "--seed", str(seed), *counts, *more)
        if self.pool is not None:  # solutions and guesses are in the pool already
            return ("tools/draw_worked_gym_data.py", "--pool", str(self.pool), *common)
        return ("tools/make_worked_gym_data.py", *common, "--guesses", GYM_GUESSES)

    @property
    def parts(self) -> Words:
        """Data flags of the study of stages."""
        math, applied = (MATH, APPLIED) if self.start is None else (GYM_MATH, GYM_APPLIED)
        names = ("--families" if self.start is None else "--tasks", *math, *applied) if self.pool is None else ()
        return (*names, "--parts", f"math={','.join(math)}", f"applied={','.join(applied)}")

    @property
    def math_share(self) -> float:
        """Part of the problems, and of the steps, that is the first stage's."""
        if self.start is None:
            return len(MATH) / len(MATH + APPLIED)
        if self.pool is None or not (self.pool / "rl_prompts.jsonl").is_file():  # a dry run may name one to come
            return len(GYM_MATH) / len(GYM_MATH + GYM_APPLIED)
        records = read_prompts(self.pool / "rl_prompts.jsonl")
        trained = [record for record in records if RATED[0] <= (solve_rate(record) or 0.0) <= RATED[1]]
        math = sum(record.metadata.get("task") in GYM_MATH for record in trained)
        return math / max(1, len(trained))

    @property
    def batch(self) -> Words:
        """Of SFT."""
        context, batch = ("512", "1") if self.start is None else ("8192", "1")
        return ("--data.context-length", context, "--data.global-batch", batch)

    @property
    def sft(self) -> Words:
        if self.start is None:
            return ("--optimizer.lr", "1e-3", "--router.balance", "1e-2", "--router.z", "1e-4")
        return ("--optimizer.lr", "3e-4", "--router.balance", "1e-3", *FRUGAL)

    @property
    def micro_batch(self) -> Words:
        """Of RL."""
        return ("--data.micro-batch-tokens", "2048" if self.start is None else "8192")

    @property
    def sampled(self) -> Words:
        """Of RL and of evaluations."""
        if self.start is None:
            return ("--rewards.workers", "1")
        return ("--sampling.max-batch", "384", "--rewards.workers", "2")

    @property
    def rl(self) -> Words:
        """Of every RL run."""
        if self.start is None:
            return ("--optimizer.beta2", "0.99", "--router.balance", "1e-2", "--router.z", "1e-4", *self.sampled)
        low, high = map(str, RATED)
        rated = ("--data.min-solve-rate", low, "--data.max-solve-rate", high) if self.pool is not None else ()
        return ("--router.balance", "1e-3", *self.sampled, *FRUGAL, *rated)

    @property
    def rate(self) -> str:
        """Learning rate of RL."""
        return "2e-4" if self.start is None else "2e-5"

    @property
    def hot_rate(self) -> str:
        """Five times that, constant: to provoke a collapse."""
        return "1e-3" if self.start is None else "1e-4"

    @property
    def kl(self) -> str:
        """KL weight of RL."""
        return "0.05" if self.start is None else "1e-3"

    @property
    def choice(self) -> Words:
        """How the study of C3PO chooses its SFT checkpoint. No band is known for a pretrained start."""
        if self.start is None:
            return ("--entropy-low", "0.15", "--entropy-high", "0.30")
        return ("--rule", "validation")


# Runs share a GPU, its host and its disk: a checkpoint is that of the last step, weights alone, and no host memory is held
# for it.
FRUGAL = ("--no-async-save", "--no-save-optimizer")
TINY = Edition()
