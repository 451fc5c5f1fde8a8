"""What configurations check themselves with. Imports no torch."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from megatron_ring.errors import UserError


def require(condition: bool, message: str) -> None:
    """Raise `UserError(message)` unless `condition` holds."""
    if not condition:
        raise UserError(message)


LEAST_TEMPERATURE = 1e-4


def require_temperature(value: float, flag: str) -> None:
    """Raise `UserError` for what logits cannot be divided by in fp32."""
    in_range = value == 0 or LEAST_TEMPERATURE <= value < math.inf
    require(in_range, f"{flag} is {value}: give at least {LEAST_TEMPERATURE:g}, or 0 for the most likely token")


def check_numbers(config: Any, prefix: str = "--") -> None:
    """Refuse numbers that no setting means: those that are not finite, and seeds beyond int64, which torch does not take."""
    for setting in dataclasses.fields(config):
        value, flag = getattr(config, setting.name), f"{prefix}{setting.name.replace('_', '-')}"
        if dataclasses.is_dataclass(value):
            check_numbers(value, f"{flag}.")
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float) and not math.isfinite(number) and not setting.metadata.get("unlimited"):
                raise UserError(f"{flag} is {number}, not a finite number")
            if setting.name in ("seed", "seeds") and isinstance(number, int) and not -(2**63) <= number < 2**63:
                raise UserError(f"{flag} is {number}, outside -2^63..2^63-1")
