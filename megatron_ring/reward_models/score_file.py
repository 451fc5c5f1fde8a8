"""Scoring a file: what it is, its conversations, their rewards, and what these say by the file's own rules."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from megatron_ring.benchmarks import reward_bench
from megatron_ring.config.reward_model import ScoreConfig
from megatron_ring.data.fields import Fields
from megatron_ring.data.files import read_sft_file
from megatron_ring.data.preference_data import conversation_tokens
from megatron_ring.data.preference_files import PREFERENCE_FIELDS, read_preference_file
from megatron_ring.data.preferences import Conversation
from megatron_ring.data.records import Message
from megatron_ring.data.rows import read_rows
from megatron_ring.data.tokenizer import RingTokenizer
from megatron_ring.errors import UserError
from megatron_ring.reward_models.measures import ScoredPair, correlation, summary

Kind = Literal["preferences", "reward-bench", "reward-bench-2", "conversations"]


@dataclass(frozen=True)
class Item:
    """What is compared: conversations of one row, and what is to be written beside their rewards."""

    conversations: tuple[Conversation, ...]
    place: str
    said: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Scored:
    """An item's rewards, and lengths of its answers (tokens)."""

    rewards: list[float]
    lengths: list[int]


@dataclass(frozen=True)
class ScoreFile:
    """A file that was read. `judge`: figures of its items' rewards."""

    kind: Kind
    items: list[Item]
    note: str
    judge: Callable[[Sequence[Scored]], dict[str, Any]]


def read_score_file(config: ScoreConfig) -> ScoreFile:
    """Read `config.input`. Raises `UserError`, which names file and line."""
    kind = config.kind if config.kind != "auto" else _kind_of(config)
    if kind == "preferences":
        return _preferences(config)
    if kind == "conversations":
        file = read_sft_file(config.input, Fields.of(config, ("messages", "prompt", "response", "domain"), "--fields"))
        items = [Item((record.messages,), record.place) for record in file.records]
        return ScoreFile(kind, items, file.note, _judge_conversations)
    version = 1 if kind == "reward-bench" else 2
    rows = list(read_rows(config.input))
    if not rows:
        raise UserError(f"{config.input}: the file holds no rows: give at least one")
    questions = [reward_bench.read_question(row, place, version) for place, row in rows]
    items = [
        Item(
            tuple((Message("user", one.prompt), Message("assistant", answer)) for answer in one.answers),
            place,
            {"id": one.id, "subset": one.subset},
        )
        for one, (place, _) in zip(questions, rows, strict=True)
    ]
    return ScoreFile(kind, items, "", partial(_judge_questions, questions, version))


def _kind_of(config: ScoreConfig) -> Kind:
    _, row = next(read_rows(config.input), ("", {}))
    if reward_bench.is_version_2(row):
        return "reward-bench-2"
    if reward_bench.is_version_1(row):
        return "reward-bench"
    answered = row.get("messages") is not None or (row.get("prompt") is not None and row.get("response") is not None)
    compared = any(name in row for name in ("chosen", "rejected", "completions", "rejected_response"))
    return "conversations" if answered and not compared else "preferences"


def _preferences(config: ScoreConfig) -> ScoreFile:
    fields = Fields.of(config, PREFERENCE_FIELDS, "--fields")
    file = read_preference_file(config.input, fields, config.pairs, config.bad_rows, False, "--fields")
    items = [
        Item((one.chosen, one.rejected), one.place, {"id": one.id or number, "subset": one.subset})
        for number, one in enumerate(file.records, start=1)
    ]
    subsets = [one.subset for one in file.records]
    return ScoreFile("preferences", items, file.note, partial(_judge_pairs, subsets, config.calibration_bins))


def _judge_pairs(subsets: Sequence[str], bins: int, scored: Sequence[Scored]) -> dict[str, Any]:
    pairs = [
        ScoredPair(one.rewards[0], one.rewards[1], one.lengths[0], one.lengths[1], subset=subset)
        for one, subset in zip(scored, subsets, strict=True)
    ]  # fmt: skip
    return summary(pairs, bins)


def _judge_questions(questions: Sequence[reward_bench.Question], version: int, scored: Sequence[Scored]) -> dict[str, Any]:
    score = reward_bench.score_version_1 if version == 1 else reward_bench.score_version_2
    return score(questions, [one.rewards for one in scored])


def _judge_conversations(scored: Sequence[Scored]) -> dict[str, Any]:
    rewards, lengths = [one.rewards[0] for one in scored], [float(one.lengths[0]) for one in scored]
    return {"reward_mean": sum(rewards) / len(rewards), "length_correlation": correlation(rewards, lengths)}


@dataclass(frozen=True)
class Tokenized:
    """Tokens of every conversation in order, lengths of their answers, and how many were cut."""

    sequences: list[list[int]]
    lengths: list[int]
    cut: int


def tokenized(file: ScoreFile, config: ScoreConfig, tokenizer: RingTokenizer, max_positions: int) -> Tokenized:
    """Raises `UserError`, which names the line, for what cannot be tokenized or is too long."""
    sequences, lengths, cut = [], [], 0
    for item in file.items:
        for conversation in item.conversations:
            try:
                tokens, answer = conversation_tokens(conversation, tokenizer, config.control_tokens == "keep")
            except UserError as error:
                raise UserError(f"{item.place}: {error}") from None
            if len(tokens) > max_positions:
                if config.overlong == "error":
                    raise UserError(
                        f"{item.place}: {len(tokens):,} tokens, the model has {max_positions:,} positions: leave it out, or "
                        f"cut such beginnings off with --overlong cut"
                    )
                tokens, cut = tokens[-max_positions:], cut + 1
            sequences.append(tokens)
            lengths.append(answer)
    return Tokenized(sequences, lengths, cut)


def regrouped(file: ScoreFile, rewards: Sequence[float], lengths: Sequence[int]) -> list[Scored]:
    """Rewards and lengths of all conversations, by item. Raises `UserError` for what is not finite."""
    if not all(map(math.isfinite, rewards)):
        raise UserError("rewards are not finite: the reward model's weights are broken")
    scored, start = [], 0
    for item in file.items:
        end = start + len(item.conversations)
        scored.append(Scored(list(rewards[start:end]), list(lengths[start:end])))
        start = end
    return scored


def file_figures(config: ScoreConfig, file: ScoreFile) -> dict[str, Any]:
    """What tells the file that was scored from another."""
    return {
        "name": file.kind,
        "file": str(config.input),
        "file_sha256": hashlib.sha256(config.input.read_bytes()).hexdigest(),
        "rows": len(file.items),
    }
