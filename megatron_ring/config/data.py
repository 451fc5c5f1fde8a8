"""Which columns of a data file are read. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_ring.config.checks import require


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The columns of a file that is neither of our form nor of a public one that is known."""

    fields: tuple[str, ...] = ()
    """Columns by what they hold, NAME=COLUMN each, as in `prompt=problem answer=reward_model.ground_truth`; dots go into
    objects, numbers into lists (default: our names, or those of a public data set that is recognised)."""
    domain: str | None = None
    """Domain of rows that name none; where `fields` are given, of all rows, unless those name its column."""

    def __post_init__(self) -> None:
        for pair in self.fields:
            name, sign, column = pair.partition("=")
            require(bool(sign and name and column), f"fields: {pair!r} is not NAME=COLUMN")
        require(self.domain != "", "domain is empty: give the name of a verifier")
