"""Responses from an OpenAI-compatible server for tools/solve_rate.py, scored by our verifiers. Each is on disk once it is
there."""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_ring.data.records import PromptRecord
from megatron_ring.data.writing import append
from megatron_ring.errors import UserError
from megatron_ring.rewards import RewardPool, ScoreRequest
from megatron_ring.rewards.interface import MACHINE_FAILURE
from megatron_ring.run.progress import Progress

if TYPE_CHECKING:
    from tools.solve_rate import RateOptions

PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0)  # seconds before each further try
TIMEOUT = 1800.0  # seconds for one response


def sample_from_server(records: list[PromptRecord], options: RateOptions) -> Iterator[dict[str, Any]]:
    """All responses, those of an earlier run first. Raises `UserError` where the server refuses or cannot be reached."""
    path = options.out / "samples.jsonl"
    done = {(row["domain"], row["id"], row["sample"]): row for row in _whole_lines(path)}
    wanted = [(record, sample) for record in records for sample in range(options.samples)]
    missing = [(record, sample) for record, sample in wanted if (record.domain, record.id, sample) not in done]
    with (
        RewardPool(options.workers) as scorer,
        ThreadPoolExecutor(options.concurrency) as threads,
        Progress("responses", len(wanted), len(wanted) - len(missing), unit="response") as progress,
    ):
        scorer.start({record.domain for record in records})
        asked = {threads.submit(_ask, record, sample, options): (record, sample) for record, sample in missing}
        try:
            for future in as_completed(asked):
                record, sample = asked[future]
                response, finish, tokens = future.result()
                reward = scorer.submit(ScoreRequest(record.domain, None, response, record.answer)).result()
                if MACHINE_FAILURE in reward.detail:
                    raise UserError(f"{record.id}: {reward.reason}: the same command goes on where this one stopped")
                row = {"id": record.id, "domain": record.domain, "sample": sample, "response": response, "tokens": tokens,
                       "finish_reason": finish, "reward": reward.value, "reason": reward.reason}  # fmt: skip
                append(path, json.dumps(row, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
                done[record.domain, record.id, sample] = row
                progress.advance(1)
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            raise
    return iter([done[record.domain, record.id, sample] for record, sample in wanted])


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    """What an earlier run has written; a line that it did not finish is cut off."""
    if not path.is_file():
        return []
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        os.truncate(path, len(whole))
    return [json.loads(line) for line in whole.splitlines()]


def _ask(record: PromptRecord, sample: int, options: RateOptions) -> tuple[str, str, int | None]:
    """One response, what ended it and its tokens."""
    messages = [{"role": message.role, "content": message.content} for message in record.messages]
    if options.instruction:
        messages[-1]["content"] += f"\n\n{options.instruction}"
    body = {"model": options.model, "messages": messages, "temperature": options.temperature,
            "max_tokens": options.max_tokens,
            "seed": sample, "n": 1}  # fmt: skip
    found = _post(f"{str(options.url).rstrip('/')}/chat/completions", body)
    try:
        choice = found["choices"][0]
        message = choice["message"]
        thought = message.get("reasoning_content") or ""
        text = (f"<think>{thought}</think>" if thought else "") + (message.get("content") or "")
        tokens = (found.get("usage") or {}).get("completion_tokens")
        return text, str(choice.get("finish_reason")), tokens if isinstance(tokens, int) else None
    except (LookupError, TypeError, AttributeError):
        raise UserError(f"--url {options.url}: the reply is not a chat completion: {json.dumps(found)[:200]}") from None


def _post(url: str, body: dict[str, Any]) -> Any:
    headers = {"Content-Type": "application/json"}
    if os.environ.get("OPENAI_API_KEY"):
        headers["Authorization"] = f"Bearer {os.environ['OPENAI_API_KEY']}"
    problem = ""
    for pause in (*PAUSES, None):
        try:
            request = urllib.request.Request(url, json.dumps(body).encode(), headers)
            with urllib.request.urlopen(request, timeout=TIMEOUT) as reply:
                return json.load(reply)
        except urllib.error.HTTPError as error:
            problem = f"status {error.code}: {error.read(300).decode('utf-8', 'replace')}"
            if error.code not in (408, 409, 425, 429) and error.code < 500:
                break
        except ValueError as error:
            problem = f"not an address or not JSON: {error}"
            break
        except OSError as error:
            problem = str(error)
        if pause is not None:
            time.sleep(pause)
    raise UserError(f"--url {url}: {problem}: check the address and the model's name")
