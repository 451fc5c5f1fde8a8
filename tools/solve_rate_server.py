"""Responses from an OpenAI-compatible server for tools/solve_rate.py, scored by our verifiers. Each is on disk once it is
there."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_ring.data.records import PromptRecord, tools_of
from megatron_ring.data.tool_calls import OPENAI, in_form
from megatron_ring.data.writing import append
from megatron_ring.errors import UserError
from megatron_ring.judging.client import Answer, Asked, Client, Server
from megatron_ring.rewards import RewardPool, ScoreRequest
from megatron_ring.rewards.interface import MACHINE_FAILURE
from megatron_ring.run.progress import Progress

if TYPE_CHECKING:
    from tools.solve_rate import RateOptions

KEY = "OPENAI_API_KEY"
TIMEOUT = 1800.0  # seconds for one response


def sample_from_server(records: list[PromptRecord], options: RateOptions) -> Iterator[dict[str, Any]]:
    """All responses, those of an earlier run first. Raises `UserError` where the server refuses or cannot be reached."""
    path = options.out / "samples.jsonl"
    done = {(row["domain"], row["id"], row["sample"]): row for row in _whole_lines(path)}
    wanted = [(record, sample) for record in records for sample in range(options.samples)]
    missing = [(record, sample) for record, sample in wanted if (record.domain, record.id, sample) not in done]
    client = Client(_server(options))
    with (
        RewardPool(options.workers) as scorer,
        Progress("responses", len(wanted), len(wanted) - len(missing), unit="response") as progress,
    ):
        scorer.start({record.domain for record in records})
        for place, answer in client.answers([_asked(record, sample, options) for record, sample in missing]):
            record, sample = missing[place]
            if answer.problem is not None:
                raise UserError(f"--url {options.url}: {answer.problem}: the same command goes on where this one stopped")
            response = _text(answer)
            reward = scorer.submit(ScoreRequest(record.domain, None, response, record.answer)).result()
            if MACHINE_FAILURE in reward.detail:
                raise UserError(f"{record.id}: {reward.reason}: the same command goes on where this one stopped")
            row = {"id": record.id, "domain": record.domain, "sample": sample, "response": response, "tokens": answer.tokens,
                   "finish_reason": answer.finish, "reward": reward.value, "reason": reward.reason}  # fmt: skip
            append(path, json.dumps(row, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
            done[record.domain, record.id, sample] = row
            progress.advance(1)
    return iter([done[record.domain, record.id, sample] for record, sample in wanted])


def _server(options: RateOptions) -> Server:
    return Server(
        str(options.url), str(options.model), options.temperature, options.max_tokens, os.environ.get(KEY) or None,
        options.concurrency, timeout=TIMEOUT, flags=("--url", "--model"),
    )  # fmt: skip


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    """What an earlier run has written; a line that it did not finish is cut off."""
    if not path.is_file():
        return []
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        os.truncate(path, len(whole))
    return [json.loads(line) for line in whole.splitlines()]


def _asked(record: PromptRecord, sample: int, options: RateOptions) -> Asked:
    messages = in_form([message.to_json() for message in record.messages], OPENAI)
    if options.instruction:
        messages[-1]["content"] += f"\n\n{options.instruction}"
    return Asked(tuple(messages), sample, tuple(tools_of(record.messages).get("tools", ())))


def _text(answer: Answer) -> str:
    """The whole response: thinking that the server keeps apart is put back."""
    return (f"<think>{answer.thinking}</think>" if answer.thinking else "") + answer.text
