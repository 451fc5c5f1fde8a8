"""Which columns of a file hold what is read: named by the user, recognised as a public form, or those of the contract."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from megatron_ring.config.checks import require
from megatron_ring.config.data import Columns
from megatron_ring.data.messages import RecordError, json_of

PROMPT_FIELDS = ("id", "domain", "prompt", "answer", "metadata")
SFT_FIELDS = ("messages", "prompt", "response", "domain", "source")
# Where other files keep these, the likeliest first.
USUAL: dict[str, tuple[str, ...]] = {
    "answer": ("final_answer", "ground_truth", "reward_model.ground_truth", "expected_answer", "gold_answer", "gold",
               "label", "target", "solution", "correct_answer", "verification_info", "input_output"),
    "prompt": ("problem", "question", "query", "instruction", "origin_prompt", "input", "text", "messages"),
    "response": ("completion", "output", "answer", "solution", "generation", "generated_solution", "text"),
    "messages": ("conversations", "conversation", "dialog", "chat", "turns"),
    "chosen": ("chosen_response", "response_chosen", "preferred", "accepted", "better", "winner", "positive", "good"),
    "rejected": ("rejected_response", "response_rejected", "dispreferred", "reject", "worse", "loser", "negative", "bad"),
    "domain": ("ability", "category", "subject", "task", "task_type", "data_source"),
    "id": ("uuid", "uid", "unique_id", "question_id", "problem_id", "task_id", "key", "idx", "index", "extra_info.index"),
}  # fmt: skip


@dataclass(frozen=True)
class Fields:
    """What `--data.fields` and `--data.domain` say.

    Attributes:
        columns: by name of the contract, the column that holds it (`at`).
        domain: of rows that name none; where columns are named and `domain` is not among them, of all rows.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    domain: str | None = None

    @classmethod
    def of(cls, columns: Columns, names: tuple[str, ...], flag: str) -> Fields:
        """What a configuration says; `flag` is that of its `fields`. Raises `UserError`."""
        return cls.parse(columns.fields, columns.domain, names, flag)

    @classmethod
    def parse(cls, pairs: Iterable[str], domain: str | None, names: tuple[str, ...], flag: str) -> Fields:
        """From NAME=COLUMN pairs. Raises `UserError` that names the flag."""
        columns: dict[str, str] = {}
        for pair in pairs:
            name, sign, column = pair.partition("=")
            require(bool(sign and name and column), f"{flag} {pair}: give NAME=COLUMN")
            require(name in names, f"{flag} {pair}: {name} is none of {', '.join(names)}")
            require(name not in columns, f"{flag} {pair}: {name} is given twice")
            columns[name] = column
        require(domain != "", f"{flag.removesuffix('fields')}domain is empty: give the name of a verifier")
        return cls(columns, domain)

    def applied(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The row with the contract's names for the columns that are given. Raises `RecordError` for one that it lacks."""
        renamed = dict(row)
        for name, column in self.columns.items():
            value = at(row, column)
            if value is None and name in ("prompt", "answer", "messages", "response", "chosen", "rejected"):
                raise RecordError(f"the column {column!r} of '{name}' is missing; {columns_of(row)}")
            renamed[name] = value
        others = bool(self.columns) and "domain" not in self.columns  # what the file calls so may be anything
        if self.domain is not None and (others or renamed.get("domain") is None):
            renamed["domain"] = self.domain
        return renamed


def at(row: Mapping[str, Any], column: str) -> Any:
    """The value of a column; None where there is none. Where no column has the whole name, dots go into objects, and numbers
    (`a.0`, `a[0]`) into lists, also where these are JSON text."""
    if column in row:
        return row[column]
    value: Any = row
    for part in re.sub(r"\[([0-9]+)\]", r".\1", column).split("."):
        value = json_of(value, "{", "[")
        if isinstance(value, list):
            value = value[int(part)] if part.isdecimal() and int(part) < len(value) else None
        else:
            value = value.get(part) if isinstance(value, Mapping) else None
    return value


def columns_of(row: Mapping[str, Any]) -> str:
    """The columns that a row has, for messages."""
    names = [str(name) for name in row]
    return "the row has " + (", ".join(names[:12]) + (", …" if len(names) > 12 else "") if names else "no columns")


def seems_to_hold(row: Mapping[str, Any], name: str, flag: str) -> str:
    """What to say of a contract's name that a row lacks: the column that seems to hold it, and the flag that says so (where
    the flag is empty: to rename it)."""
    column = likely_column(row, name)
    if not column:
        return ""
    mend = f"{flag} {_quoted(f'{name}={column}')}" if flag else f"call it '{name}'"
    return f"; '{column}' seems to hold it: {mend}"


def seem_to_hold_a_conversation(row: Mapping[str, Any], flag: str) -> str:
    """The same of an SFT row that has neither messages nor a prompt."""
    if likely_column(row, "messages"):
        return seems_to_hold(row, "messages", flag)
    prompt, response = likely_column(row, "prompt"), likely_column(row, "response")
    if prompt and row.get("response") is not None:
        return seems_to_hold(row, "prompt", flag)
    if not prompt or not response or prompt == response:
        return ""
    pairs = " ".join(_quoted(f"{name}={column}") for name, column in (("prompt", prompt), ("response", response)))
    return f"; '{prompt}' and '{response}' seem to hold them: {flag} {pairs}"


def likely_column(row: Mapping[str, Any], name: str) -> str:
    """The column that seems to hold what the contract calls `name`; empty where none does."""
    lowered = {"_".join(str(key).lower().replace("-", " ").split()): str(key) for key in row}
    for usual in USUAL.get(name, ()):
        first, _, rest = usual.partition(".")
        column = lowered.get(first)
        if column is None:
            continue
        whole = f"{column}.{rest}" if rest else column
        if at(row, whole) is not None:
            return whole
    return ""


def _quoted(pair: str) -> str:
    return shlex.quote(pair) if " " in pair else pair
