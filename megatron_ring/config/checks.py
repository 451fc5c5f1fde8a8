"""What configurations check themselves with. Imports no torch."""

from __future__ import annotations

import math

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
