"""What a study trains and on which problems: `ring-tiny` from random weights on generated problems, on a CPU; or a
pretrained start on reasoning-gym's problems, on one GPU. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

DIFFICULTY = ("arithmetic.terms=3", "linear.solution=9", "linear.constant=20", "division.dividend=499", "division.gcd=99",
              "units.speed=49", "units.whole=12")  # fmt: skip
MATH, APPLIED = ("arithmetic", "linear", "division"), ("units", "code")
GYM_MATH = ("basic_arithmetic", "gcd", "lcm", "base_conversion")
GYM_APPLIED = ("leg_counting", "letter_counting", "number_filtering", "countdown")
Words = tuple[str, ...]


@dataclass(frozen=True)
class Edition:
    """Flags that depend on where the runs start.

    Attributes:
        start: a pretrained model, checkpoint or published folder with its tokenizer; None: `ring-tiny`, random weights.
    """

    start: Path | None = None

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
        return ("tools/make_worked_gym_data.py", "--out", str(out), "--seed", str(seed), *counts, *more)

    @property
    def parts(self) -> Words:
        """Data flags of the study of stages."""
        math, applied = (MATH, APPLIED) if self.start is None else (GYM_MATH, GYM_APPLIED)
        names = ("--families" if self.start is None else "--tasks", *math, *applied)
        return (*names, "--parts", f"math={','.join(math)}", f"applied={','.join(applied)}")

    @property
    def math_share(self) -> float:
        """Part of the problems, and of the steps, that is the first stage's."""
        return len(MATH) / len(MATH + APPLIED) if self.start is None else len(GYM_MATH) / len(GYM_MATH + GYM_APPLIED)

    @property
    def batch(self) -> Words:
        """Of SFT."""
        context, batch = ("512", "1") if self.start is None else ("4096", "4")
        return ("--data.context-length", context, "--data.global-batch", batch)

    @property
    def sft(self) -> Words:
        if self.start is None:
            return ("--optimizer.lr", "1e-3", "--router.balance", "1e-2", "--router.z", "1e-4")
        return ("--optimizer.lr", "1e-4", "--router.balance", "1e-3")

    @property
    def micro_batch(self) -> Words:
        """Of RL. On a GPU the program chooses its sizes."""
        return ("--data.micro-batch-tokens", "2048") if self.start is None else ()

    @property
    def rl(self) -> Words:
        """Of every RL run."""
        if self.start is None:
            return ("--optimizer.beta2", "0.99", "--router.balance", "1e-2", "--router.z", "1e-4", "--rewards.workers", "1")
        return ("--router.balance", "1e-3")

    @property
    def rate(self) -> str:
        """Learning rate of RL."""
        return "2e-4" if self.start is None else "1e-5"

    @property
    def hot_rate(self) -> str:
        """Five times that, constant: to provoke a collapse."""
        return "1e-3" if self.start is None else "5e-5"

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


TINY = Edition()
