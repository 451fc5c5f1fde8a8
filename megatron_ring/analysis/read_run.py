"""Reads what the stages leave on disk: run directories (config, metrics, rollouts, checkpoint choice) and evaluations.

Everything here is read, nothing is guessed: a part that a run did not write is an empty list or None, and a file that
is there but broken is a `UserError` naming file and line. The one exception is the last line of a JSONL file without
its newline: a run that was killed while writing leaves such a line, and it is dropped.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

import yaml

from megatron_ring.errors import UserError

Record = dict[str, Any]

# Keys of a sample's detail with which its reward is no share of right answers, as rewards.interface names them.
NOT_GRADED = frozenset({"machine_failure", "judge_failure", "raw_score"})


@dataclass(frozen=True)
class Epoch:
    """The checkpoint at the end of one SFT epoch and what validation measured there.

    `tokens` is the cumulative number of trained tokens; `entropy` (nats per token) and `loss` are means over
    validation tokens.
    """

    checkpoint: str
    epoch: float
    step: int
    tokens: float
    entropy: float
    loss: float


@dataclass(frozen=True)
class Run:
    """A run directory of SFT or RL: `config` flattened to dotted keys, `metrics` one record per step in step order."""

    path: Path
    config: dict[str, Any]
    metrics: list[Record]

    def series(self, key: str) -> tuple[list[float], list[float]]:
        """Steps and values of the steps that carry `key` as a number (bool excluded); NaN and infinities are kept."""
        rows = [row for row in self.metrics if is_number(row.get(key))]
        return [float(row["step"]) for row in rows], [float(row[key]) for row in rows]

    def domains(self, prefix: str) -> list[str]:
        """Domains that have a per-domain variant of a key: `reward/mean/math` gives `math` for prefix `reward/mean`."""
        names = {key[len(prefix) + 1 :] for row in self.metrics for key in row if key.startswith(prefix + "/")}
        return sorted(name for name in names if "/" not in name)


@dataclass(frozen=True)
class Evaluation:
    """One evaluation directory: `result` as written, `samples` one record per generated response."""

    path: Path
    result: Record
    samples: list[Record] = field(default_factory=list)

    def rewards(self) -> dict[str, list[float]]:
        """Problem id to the rewards of its samples; ids may repeat across domains, so the key is `domain/id`."""
        groups: dict[str, list[float]] = {}
        for sample in self.graded:
            groups.setdefault(problem_key(sample), []).append(float(sample["reward"]))
        return groups

    @property
    def graded(self) -> list[Record]:
        """The samples whose reward says how right they are, as `rollout.records.ScoredRollout.is_graded` has it."""
        return [sample for sample in self.samples if not NOT_GRADED & set(sample.get("detail") or ())]


def is_number(value: object) -> TypeGuard[int | float]:
    """True for int and float, not for bool."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def number(record: Mapping[str, Any], key: str) -> float:
    """The record's number under `key`; NaN when it is absent or no number."""
    value = record.get(key)
    return float(value) if is_number(value) else math.nan


def problem_key(sample: Mapping[str, Any]) -> str:
    """What identifies a problem of an evaluation: its domain and its id."""
    return f"{sample.get('domain', '')}/{sample['id']}"


def read_jsonl(path: Path) -> list[Record]:
    """All objects of a JSONL file; a torn last line (no newline, no JSON) is dropped, any other a UserError."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; give the directory of a run that has written it")
    lines = path.read_bytes().split(b"\n")
    records: list[Record] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)  # bytes: a torn multi-byte character is a UnicodeDecodeError, hence ValueError
        except (ValueError, RecursionError) as error:
            if number == len(lines):
                break  # torn by a kill
            raise UserError(f"{path}:{number}: not JSON ({error}); delete or mend that line") from None
        if not isinstance(record, dict):
            raise UserError(f"{path}:{number}: expected a JSON object, found {type(record).__name__}; mend that line")
        records.append(record)
    return records


def _require(records: list[Record], keys: tuple[str, ...], numbers: tuple[str, ...], path: Path) -> None:
    for position, record in enumerate(records, start=1):
        missing = [key for key in (*keys, *numbers) if key not in record]
        if missing:
            raise UserError(f"{path}: record {position} has no {', '.join(missing)}; write the file again")
        for key in numbers:
            if not is_number(record[key]):
                raise UserError(f"{path}: record {position}: {key} is {record[key]!r}, expected a number")


def read_metrics(path: Path) -> list[Record]:
    """Records of a metrics.jsonl in step order; of steps written again after a resume the later line counts."""
    records = read_jsonl(path)
    _require(records, (), ("step",), path)
    by_step = {int(record["step"]): record for record in records}
    return [by_step[step] for step in sorted(by_step)]


class _PlainLoader(yaml.SafeLoader):
    """Safe YAML that reads any tagged node as the plain mapping, list or text it is, so typed configs can be shown."""


def _construct_plain(loader: yaml.SafeLoader, _suffix: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    assert isinstance(node, yaml.ScalarNode)
    return loader.construct_scalar(node)


_PlainLoader.add_multi_constructor("!", _construct_plain)
_PlainLoader.add_multi_constructor("tag:yaml.org,2002:python/", _construct_plain)


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one mapping with dotted keys; lists stay values."""
    if not isinstance(value, dict) or not value:
        return {prefix: value} if prefix else {}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat.update(flatten(inner, f"{prefix}.{key}" if prefix else str(key)))
    return flat


def read_config(path: Path) -> dict[str, Any]:
    """A config.yaml flattened to dotted keys; empty when the file is absent."""
    if not path.is_file():
        return {}
    try:
        value = yaml.load(path.read_text(encoding="utf-8"), Loader=_PlainLoader)  # a SafeLoader: builds plain data only
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise UserError(f"{where}: not YAML ({getattr(error, 'problem', None) or error}); mend that line") from None
    if value is not None and not isinstance(value, dict):
        raise UserError(f"{path}: expected a mapping at the top, found {type(value).__name__}")
    return flatten(value or {})


def read_run(path: Path) -> Run:
    """A run directory with its config and metrics; `UserError` when there is no metrics.jsonl or it holds no step."""
    metrics = read_metrics(path / "metrics.jsonl")
    if not metrics:
        raise UserError(f"{path / 'metrics.jsonl'}: holds no step; run at least one step first")
    return Run(path, read_config(path / "config.yaml"), metrics)


def epoch_checkpoints(run: Run) -> list[Epoch]:
    """The epoch ends of an SFT run that have a checkpoint."""
    return [found for found in validations(run) if found.checkpoint]


def validations(run: Run) -> list[Epoch]:
    """The epoch ends of an SFT run: the steps with a finite `validation/entropy`; `checkpoint` is "" where there is none."""
    return [
        Epoch(
            checkpoint=row["checkpoint"] if isinstance(row.get("checkpoint"), str) else "",
            epoch=number(row, "epoch"),
            step=int(row["step"]),
            tokens=number(row, "tokens"),
            entropy=number(row, "validation/entropy"),
            loss=number(row, "validation/loss"),
        )
        for row in run.metrics
        if math.isfinite(number(row, "validation/entropy"))
    ]


def read_selection(run: Path) -> Record | None:
    """The checkpoint choice that tools/select_checkpoint.py left in an SFT run, or None when no choice was made."""
    path = run / "selection.json"
    if not path.is_file():
        return None
    selection = _read_json(path)
    band = selection.get("band")
    usable = isinstance(band, list) and len(band) == 2 and all(is_number(value) for value in band)
    if not usable and not (band is None and "rule" in selection):  # another rule has no band
        raise UserError(f"{path}: no band of two numbers; run tools/select_checkpoint.py again")
    if not isinstance(selection.get("checkpoint"), str) or not isinstance(selection.get("reason"), str):
        raise UserError(f"{path}: no checkpoint and reason; run tools/select_checkpoint.py again")
    return selection


def _read_json(path: Path) -> Record:
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error}); write the file again") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def rollout_steps(run: Path) -> list[int]:
    """Steps for which the run kept sampled text, ascending."""
    matches = (re.fullmatch(r"step_(\d+)\.jsonl", entry.name) for entry in (run / "rollouts").glob("step_*.jsonl"))
    return sorted(int(match[1]) for match in matches if match)


def read_rollouts(run: Path, step: int) -> list[Record]:
    """The sampled responses of one RL step, in the order written."""
    path = run / "rollouts" / f"step_{step}.jsonl"
    records = read_jsonl(path)
    _require(records, ("prompt_id", "prompt", "response"), ("reward",), path)
    return records


def read_evaluation(path: Path) -> Evaluation:
    """An evaluation directory: result.json is required, samples.jsonl may be absent (then gains cannot be paired)."""
    file = path / "result.json"
    if not file.is_file():
        raise UserError(f"{file}: no such file; give the directory that an evaluation wrote, or wait until it has finished")
    result = _read_json(file)
    graded = not {"raw_score_mean", "without_verdict"} & result.keys() or "pass_at_1" in result
    _require([result], ("checkpoint",), ("problems", "pass_at_1") if graded else ("problems",), file)
    if not (path / "samples.jsonl").is_file():
        return Evaluation(path, result)
    samples = read_jsonl(path / "samples.jsonl")
    _require(samples, ("id", "prompt", "response"), ("reward",), path / "samples.jsonl")
    found = Evaluation(path, result, samples)
    for sample in found.graded:
        if not 0 <= sample["reward"] <= 1:
            position = samples.index(sample) + 1
            raise UserError(f"{path / 'samples.jsonl'}: record {position}: reward {sample['reward']} is outside 0 to 1")
    return found
