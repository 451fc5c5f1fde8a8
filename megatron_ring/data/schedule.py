"""Which prompts a run draws, when, and in what shares: one prompt file, or a stage file that names several.

A stage file is YAML or JSON. Files are looked for beside it; the last stage runs to the end of the run.

    stages:
      - steps: 600
        prompts:
          - {file: math.jsonl}
      - prompts:
          - {file: code.jsonl, weight: 0.8}
          - {file: mixed.jsonl, domain: science, weight: 0.2}

`domain` takes only that domain's prompts of a file, `where` those with such metadata (`where`), `by` and `weights` give the
values of a field their shares. Weights are shares of the prompts of a step; a stage without any draws
from its files as if they were one, in proportion to their numbers of prompts. A file that two stages name goes on where
the earlier left off.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import yaml

from megatron_ring.config.checks import require
from megatron_ring.data.fields import Fields
from megatron_ring.data.files import read_prompt_file
from megatron_ring.data.interleave import whole_shares
from megatron_ring.data.records import PromptRecord
from megatron_ring.data.stage_entries import Part, read_entry
from megatron_ring.data.where import field_of
from megatron_ring.errors import UserError

STAGE_FILES = (".yaml", ".yml", ".json")


@dataclass(frozen=True)
class PromptSource:
    """Prompts that are shuffled together: a file, or one domain of it. `name` is unlike that of any other source."""

    name: str
    path: Path
    records: tuple[PromptRecord, ...]

    @property
    def domains(self) -> list[str]:
        """Its domains, sorted."""
        return sorted({record.domain for record in self.records})

    def answers(self) -> Iterator[tuple[str, str, Any]]:
        """Place, domain and answer of each prompt."""
        return ((record.place or str(self.path), record.domain, record.answer) for record in self.records)


@dataclass(frozen=True)
class DataStage:
    """Steps (0-based) from `first_step` on draw from these sources (places in the schedule) in these whole shares."""

    first_step: int
    sources: tuple[int, ...]
    shares: tuple[int, ...]


@dataclass(frozen=True)
class PromptSchedule:
    """All sources of a run and its stages, in order; `notes`: what is to be said of how their files were read."""

    sources: tuple[PromptSource, ...]
    stages: tuple[DataStage, ...]
    notes: tuple[str, ...] = ()

    def stage_at(self, step: int) -> int:
        """The place of the stage that the 0-based step belongs to."""
        return max(i for i, stage in enumerate(self.stages) if stage.first_step <= step)

    def unreached(self, steps: int) -> list[str]:
        """What there is to say of stages from which a run of so many steps draws nothing."""
        return [
            f"stage {number} of the data begins at step {stage.first_step + 1:,}: with --steps {steps:,} nothing is drawn "
            f"from it"
            for number, stage in enumerate(self.stages, start=1)
            if stage.first_step >= steps
        ]

    @property
    def domains(self) -> set[str]:
        """The domains of all sources."""
        return {domain for source in self.sources for domain in source.domains}


def single_source(records: Sequence[PromptRecord], path: Path = Path("prompts")) -> PromptSchedule:
    """One source for the whole run."""
    return PromptSchedule((PromptSource(path.stem, path, tuple(records)),), (DataStage(0, (0,), (1,)),))


def read_schedule(
    path: Path, min_solve_rate: float | None = None, max_solve_rate: float | None = None, fields: Fields | None = None
) -> PromptSchedule:
    """Read a prompt file, or a stage file (.yaml, .yml, or .json with an object of stages) with its prompt files.

    Args:
        min_solve_rate, max_solve_rate: keep only prompts whose `metadata.solve_rate` lies between them, both included.
        fields: columns of files that are neither of our form nor of a public one.

    Raises:
        UserError: names the file, and the stage or line, of whatever is missing or malformed.
    """
    reader = _Reader(min_solve_rate, max_solve_rate, fields)
    if not is_stage_file(path):
        reader.source(path, Part(path.name, None), str(path))
        return PromptSchedule(tuple(reader.sources), (DataStage(0, (0,), (1,)),), tuple(reader.notes))
    stages, first_step = [], 0
    described = _stages(path)
    for number, stage in enumerate(described, start=1):
        where, last = f"{path}: stage {number}", number == len(described)
        _only(stage, {"steps", "prompts"}, where)
        steps = stage.get("steps")
        if last:
            require(steps is None, f"{where}: the last stage runs to the end of the run (--steps): leave 'steps' out")
        else:
            require(_is_count(steps), f"{where}: 'steps' is {steps!r}: give the number of steps that it lasts")
        stages.append(reader.stage(path.parent, stage.get("prompts"), first_step, where))
        first_step += steps or 0
    return PromptSchedule(tuple(reader.sources), tuple(stages), tuple(reader.notes))


def is_stage_file(path: Path) -> bool:
    """Whether a file is one of stages and not of prompts. A .json file is where it is one object with `stages`."""
    if path.suffix != ".json":
        return path.suffix in STAGE_FILES
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return path.exists() and b'"stages"' in path.read_bytes()[:4096]  # its reader says what is wrong with it
    return isinstance(content, dict) and "stages" in content


def _stages(path: Path) -> list[dict[str, Any]]:
    try:
        described = json.loads(path.read_bytes()) if path.suffix == ".json" else yaml.safe_load(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}: check the path") from None
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as {path.suffix[1:]}: {error}") from None
    require(isinstance(described, dict), f"{path}: expected an object with 'stages'")
    _only(described, {"stages"}, str(path))
    stages = described.get("stages")
    usable = isinstance(stages, list) and bool(stages) and all(isinstance(stage, dict) for stage in stages)
    require(usable, f"{path}: 'stages' is not a list of stages, each with 'prompts' and, but for the last, 'steps'")
    return stages


def _only(values: dict[str, Any], known: set[str], where: str) -> None:
    unknown = sorted(str(key) for key in values.keys() - known)
    require(not unknown, f"{where}: unknown key {', '.join(unknown)}: use {', '.join(sorted(known))}")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


class _Reader:
    """Reads each prompt file once, and each source once whatever the number of stages that name it."""

    def __init__(self, min_solve_rate: float | None, max_solve_rate: float | None, fields: Fields | None) -> None:
        self.sources: list[PromptSource] = []
        self.notes: list[str] = []
        self._low, self._high, self._fields = min_solve_rate, max_solve_rate, fields
        self._files: dict[Path, list[PromptRecord]] = {}
        self._places: dict[Hashable, int] = {}
        self._owners: dict[tuple[str, str], Path] = {}

    def stage(self, folder: Path, entries: Any, first_step: int, where: str) -> DataStage:
        """One stage from what its 'prompts' says."""
        usable = isinstance(entries, list) and bool(entries) and all(isinstance(entry, dict) for entry in entries)
        require(usable, f"{where}: 'prompts' is not a list of objects with 'file', and perhaps 'domain' and 'weight'")
        places: list[int] = []
        weights: list[int | float | Fraction] = []
        parts = [part for entry in entries for part in read_entry(entry, where)]
        owners: dict[tuple[str, str], str] = {}
        for part in parts:
            place = self.source(folder / part.file, part, where)
            source = self.sources[place]
            require(place not in places, f"{where}: {source.name} is named twice: name it once")
            for record in source.records:
                owner = owners.setdefault((record.domain, record.id), source.name)
                said = f"{where}: the id {record.id!r} of domain {record.domain} is in {owner} and in {source.name}"
                require(owner == source.name, f"{said}: let the parts of a file exclude each other, and make ids unique")
            places.append(place)
            weights += [] if part.weight is None else [part.weight]
        require(len(weights) in (0, len(parts)), f"{where}: some prompts have a weight, some have none: weigh all or none")
        shares = whole_shares(weights or [len(self.sources[place].records) for place in places])
        return DataStage(first_step, tuple(places), tuple(shares))

    def source(self, path: Path, part: Part, where: str) -> int:
        """The place of a source, read when it is new."""
        key = (path, part.domain, part.conditions, part.rest_of)
        if key in self._places:
            return self._places[key]
        if path not in self._files:
            file = read_prompt_file(path, self._fields)
            self._files[path] = file.records
            self.notes += [file.note] if file.note else []
        records = [record for record in self._files[path] if part.holds(record)]
        if not records:
            raise UserError(f"{where}: {path} {self._why_none(path, part)}")
        records = self._filtered(path, records)
        name = path.stem + part.suffix
        taken = next((source for source in self.sources if source.name == name), None)
        require(taken is None, f"{where}: {path} and {taken and taken.path} have the same name: rename one")
        for record in records:  # parts of one file may share prompts, in different stages
            owner = self._owners.setdefault((record.domain, record.id), path)
            said = f"{where}: the id {record.id!r} of domain {record.domain} is in {owner.stem} and in {name}"
            require(owner == path, f"{said}: make ids unique")
        self.sources.append(PromptSource(name, path, tuple(records)))
        self._places[key] = len(self.sources) - 1
        return len(self.sources) - 1

    def _why_none(self, path: Path, part: Part) -> str:
        """What to say of a part that holds nothing."""
        records = self._files[path]
        if part.domain is not None and all(record.domain != part.domain for record in records):
            return f"has no prompts of domain {part.domain!r}"
        for condition in part.conditions:
            if all(field_of(record, condition.field) is None for record in records):
                return f"has no prompt with metadata.{condition.field}: tools/curate.py annotate writes such fields"
        return f"has no prompts where {' and '.join(map(str, part.conditions)) or 'no other value of weights holds'}"

    def _filtered(self, path: Path, records: list[PromptRecord]) -> list[PromptRecord]:
        if self._low is None and self._high is None:
            return records
        low, high = self._low or 0.0, 1.0 if self._high is None else self._high
        kept = []
        for record in records:
            rate = solve_rate(record)
            if rate is None:
                raise UserError(
                    f"{path}: prompt {record.id!r} has no metadata.solve_rate from 0 to 1, which --data.min-solve-rate and "
                    f"--data.max-solve-rate need"
                )
            if low <= rate <= high:
                kept.append(record)
        require(bool(kept), f"{path}: none of {len(records)} prompts has a solve rate from {low} to {high}")
        return kept


def solve_rate(record: PromptRecord) -> float | None:
    """The share of earlier responses that solved the prompt, `metadata.solve_rate`; None where it is not there."""
    rate = record.metadata.get("solve_rate")
    if not isinstance(rate, int | float) or isinstance(rate, bool):
        return None
    return float(rate) if 0 <= rate <= 1 else None
