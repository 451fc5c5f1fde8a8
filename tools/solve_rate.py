"""How often a model solves each problem of a prompt file, and what that says of the problem and its given answer.

The responses come from our sampler, with the flags of an evaluation behind `--`:

    tools/solve_rate.py --prompts kept.jsonl --out rated -- --checkpoint CKPT --tokenizer DIR --sampling.max-new-tokens 2048

or from any OpenAI-compatible server (`--url URL/v1 --model NAME`), or from the samples.jsonl of an evaluation
(`--responses`). `rated/` gets kept.jsonl, with `solve_rate`, `difficulty`, `majority_answer`, … in each row's metadata,
dropped.jsonl and ledger.jsonl. The same command goes on where a killed one stopped: each response is on disk once it is
scored. Several GPUs: one command each with `--shard 1/4` … `4/4` in the same folder; once all are done, the same command
without --shard writes the rows.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megatron_ring.checkpoint.identity import weights_fingerprint
from megatron_ring.config.checks import require
from megatron_ring.config.cli import parse
from megatron_ring.curation.reading import CONTRACT, content_digest
from megatron_ring.curation.solve_rates import SolveRate, solve_rate
from megatron_ring.data.files import PromptRecord, read_prompt_file, write_prompts
from megatron_ring.data.records import prompt_to_json
from megatron_ring.data.rows import read_rows
from megatron_ring.data.writing import write_atomically
from megatron_ring.errors import UserError, run_main
from megatron_ring.rewards.interface import has_verdict
from megatron_ring.rollout.journal import settle_identity
from tools.solve_rate_server import sample_from_server

READ = frozenset({*CONTRACT, "metadata", "tools"})  # columns of a prompt
VERDICTS = ("always", "never", "contradicted")


@dataclass(frozen=True, kw_only=True)
class RateOptions:
    """Solve rates of a prompt file."""

    prompts: Path
    """Prompt file."""
    out: Path
    """Folder for kept.jsonl, dropped.jsonl, ledger.jsonl and the responses."""
    samples: int = 16
    """Responses to each problem."""
    drop: tuple[str, ...] = ()
    """Problems to drop, some of: always (all responses right), never (none), contradicted (none, and more than half agree on
    another answer)."""
    responses: Path | None = None
    """samples.jsonl of an evaluation, instead of sampling."""
    url: str | None = None
    """Address of an OpenAI-compatible server up to /v1, instead of our sampler."""
    model: str | None = None
    """Name of the server's model."""
    temperature: float = 1.0
    """Of the server's sampling."""
    max_tokens: int = 4096
    """Of a response of the server."""
    instruction: str = "Please reason step by step, and put your final answer within \\boxed{}."
    """Text that the server gets behind each problem."""
    concurrency: int = 16
    """Requests to the server at a time."""
    workers: int = 2
    """Verifier processes for the server's responses."""
    shard: str | None = None
    """Which problems to sample, as in 2/4: the second of four shares."""


def main() -> None:
    """Command line."""
    argv, _, flags = (sys.argv[1:], None, None) if "--" not in sys.argv else _split(sys.argv[1:])
    options = parse(RateOptions, "tools/solve_rate.py", __doc__ or "", list(argv))
    check(options, bool(flags))
    records = read_prompt_file(options.prompts).records
    if options.responses is not None:
        samples = responses_of(options.responses)
    elif options.url is not None:
        # Responses of another model or another form of the problems are not to be mixed with these.
        names = ("model", "temperature", "max_tokens", "instruction")
        asked = {name: getattr(options, name) for name in names} | {"prompts": content_digest(options.prompts)}
        settle_identity(options.out, asked)
        samples = by_problem(sample_from_server(records, options))
    else:
        found = sample_with_ours(records, options, list(flags or ()))
        if found is None:
            print(f"shard {options.shard} is done; others are not: run them, then the same command without --shard")
            return
        samples = found
    write_results(records, samples, options)


def _split(argv: list[str]) -> tuple[list[str], None, list[str]]:
    place = argv.index("--")
    return argv[:place], None, argv[place + 1 :]


def check(options: RateOptions, has_flags: bool) -> None:
    """Raise `UserError` for flags that do not go together."""
    given = [options.responses is not None, options.url is not None, has_flags]
    require(sum(given) == 1, "give one of --responses FILE, --url URL, or `-- --checkpoint CKPT --tokenizer DIR …`")
    require(options.url is None or options.model is not None, "--model is missing: the name of the server's model")
    require(min(options.samples, options.concurrency, options.workers, options.max_tokens) >= 1,
            "--samples, --concurrency, --workers and --max-tokens: give 1 at least")  # fmt: skip
    unknown = next((name for name in options.drop if name not in VERDICTS), None)
    require(unknown is None, f"--drop {unknown}: use some of {', '.join(VERDICTS)}")


def responses_of(path: Path) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Scored responses by domain and id. Raises `UserError` that names the line."""
    return by_problem(_checked(path))


def _checked(path: Path) -> Iterator[dict[str, Any]]:
    for place, row in read_rows(path):
        missing = next((name for name in ("id", "domain", "response", "reward") if row.get(name) is None), None)
        if missing is not None or not isinstance(row["reward"], int | float):
            raise UserError(
                f"{place}: {missing or 'reward'!r} is missing or no number: give the samples.jsonl of an evaluation"
            )
        if has_verdict(row.get("detail") or {}):
            yield row


def by_problem(rows: Iterator[dict[str, Any]]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Responses by domain and id of their problem."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        found[str(row["domain"]), str(row["id"])].append(row)
    return found


def sample_with_ours(
    records: list[PromptRecord], options: RateOptions, flags: list[str]
) -> dict[tuple[str, str], list[dict[str, Any]]] | None:
    """Responses by one evaluation of all problems that no earlier one has answered; None where other shards are not there
    yet."""
    own, of = _shard(options.shard)
    folder = options.out / "responses" / sampling_digest(options, flags)
    found = _finished(folder)
    share = records[own::of]
    lacking = [record for record in share if (record.domain, record.id) not in found]
    if lacking:
        target = folder / f"{own + 1}-of-{of}-{_digest([(record.domain, record.id) for record in lacking])}"
        target.mkdir(parents=True, exist_ok=True)
        write_prompts(target / "prompts.jsonl", lacking)
        command = [sys.executable, "-m", "megatron_ring.evaluate", "--prompts", str(target / "prompts.jsonl"), "--out",
                   str(target), "--samples-per-problem", str(options.samples), *flags]  # fmt: skip
        print(f"{len(lacking):,} of {len(records):,} problems to sample", flush=True)
        status = subprocess.run(command).returncode
        if status:
            raise UserError(f"the evaluation of {target / 'prompts.jsonl'} ended with status {status}: see above")
        found = _finished(folder)
    whole = options.shard is None or all((record.domain, record.id) in found for record in records)
    return found if whole else None


def _finished(folder: Path) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """The responses of all evaluations that have ended."""
    ended = [path.parent for path in sorted(folder.glob("*/result.json"))]
    return by_problem(row for path in ended for row in _checked(path / "samples.jsonl"))


def sampling_digest(options: RateOptions, flags: list[str]) -> str:
    """Of all that decides the responses: the problems, their number, the flags, and the weights themselves."""
    weights = [weights_fingerprint(Path(folder)) for folder in _checkpoints(flags)]
    return _digest([content_digest(options.prompts), options.samples, flags, weights])


def _digest(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value).encode(), digest_size=8).hexdigest()


def _checkpoints(flags: list[str]) -> Iterator[str]:
    for place, flag in enumerate(flags):
        name, sign, value = flag.partition("=")
        if name == "--checkpoint":
            yield value if sign else "".join(flags[place + 1 : place + 2])


def _shard(text: str | None) -> tuple[int, int]:
    """(which, of how many), the first from 0."""
    if text is None:
        return 0, 1
    own, _, of = text.partition("/")
    require(
        own.isdigit() and of.isdigit() and 1 <= int(own) <= int(of), f"--shard {text}: give which of how many, as in 2/4"
    )
    return int(own) - 1, int(of)


def write_results(
    records: list[PromptRecord], samples: dict[tuple[str, str], list[dict[str, Any]]], options: RateOptions
) -> None:
    """Write the rows and the ledger, and print one line of summary."""
    kept, dropped, ledger, verdicts, rates = [], [], [], Counter[str](), []
    others = other_columns(options.prompts)
    for record in records:
        given = samples.get((record.domain, record.id))
        if not given:
            raise UserError(
                f"{record.place or options.prompts}: no response to {record.id!r} has a verdict: give the same prompt file "
                f"to both, or run it again"
            )
        rate = solve_rate(given)
        verdicts[rate.verdict or "in between"] += 1
        rates.append(rate.rate)
        row = prompt_to_json(replace(record, metadata={**record.metadata, **rate.metadata()})) | others.get(record.place, {})
        if rate.verdict in options.drop:
            entry = {
                "id": record.id,
                "step": "solve_rate",
                "action": "dropped",
                "reason": rate.verdict,
                "evidence": evidence(rate),
            }
            ledger.append(entry)
            dropped.append({**row, "dropped": {"step": "solve_rate", "reason": rate.verdict}})
        else:
            kept.append(row)
    for name, rows in (("kept.jsonl", kept), ("dropped.jsonl", dropped), ("ledger.jsonl", ledger)):
        write_atomically(options.out / name, (json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows))
    said = ", ".join(f"{count:,} {name}" for name, count in verdicts.most_common())
    mean = f"mean solve rate {sum(rates) / len(rates):.4f}"
    print(f"{len(records):,} problems: {said}; {mean}; {len(kept):,} kept in {options.out / 'kept.jsonl'}")


def other_columns(path: Path) -> dict[str, dict[str, Any]]:
    """What rows of the contract bring beside a prompt, as curated ones do (solutions, a response), by FILE:LINE."""
    rows = ((place, row) for place, row in read_rows(path) if all(row.get(name) is not None for name in CONTRACT))
    return {place: {name: row[name] for name in row.keys() - READ} for place, row in rows}


def evidence(rate: SolveRate) -> str:
    """What the ledger says."""
    majority = f"; {rate.majority_share:.0%} answer {rate.majority[:60]!r}" if rate.majority is not None else ""
    return f"{round(rate.rate * rate.samples)} of {rate.samples} responses are right{majority}"


if __name__ == "__main__":
    run_main(main)
