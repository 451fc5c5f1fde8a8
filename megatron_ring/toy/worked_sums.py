"""How a sum is written out, in steps that a tiny model can learn."""

from __future__ import annotations


def worked(left: int, sign: str, right: int) -> str:
    """A sum or difference, one decimal place at a time from the left: 34+57=84+7=91.

    A carry then moves one place at most in each step, which is what makes it learnable for a tiny model.
    """
    chain, total, parts = "", left, places(right)
    for index, part in enumerate(parts):
        chain += f"{total}{sign}{sum(parts[index:])}="
        total += part if sign == "+" else -part
    return f"{chain}{total}"


def places(number: int) -> list[int]:
    """The non-zero decimal places of a positive number from the left: 407 gives 400, 7."""
    digits = str(number)
    return [int(digit) * 10 ** (len(digits) - 1 - index) for index, digit in enumerate(digits) if digit != "0"]
