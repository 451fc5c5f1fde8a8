"""The run directory: resolved configuration, metrics, TensorBoard, where checkpoints go. See README for the layout.

A run is resumed by the same command. Metrics of steps after the last whole checkpoint are dropped then: they will be
written again, equal.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

from megatron_ring.algorithm.histogram import Histogram
from megatron_ring.checkpoint.folder import latest_checkpoint, step_of, tidy, whole_checkpoints
from megatron_ring.checkpoint.manifest import read_manifest
from megatron_ring.config.checks import require
from megatron_ring.config.metadata import changeable, compared_by_content
from megatron_ring.config.stage import StageConfig
from megatron_ring.config.yaml_file import build_config, dump_yaml, read_yaml
from megatron_ring.data.writing import write_atomically
from megatron_ring.errors import UserError, naming
from megatron_ring.run.continuing import another_configuration, changed_layout, check_content
from megatron_ring.run.lock import take_lock


def plain(value: Any) -> Any:
    """A configuration as plain YAML/JSON values, without the settings that say that they are not to be recorded."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        recorded = [field.name for field in dataclasses.fields(value) if field.metadata.get("recorded", True)]
        return {name: plain(getattr(value, name)) for name in recorded}
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def record_of(config: StageConfig) -> dict[str, Any]:
    """What config.yaml and checkpoints say of a run's configuration."""
    return {"stage": config.stage_name, **plain(config)}


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, keys joined by dots."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat.update(flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return flat


def recorded_settings(path: Path) -> dict[str, Any] | None:
    """The configuration of the run in a directory so far, as its last checkpoint or its config.yaml has it; None without a
    run, or where neither can be read, which `RunDirectory.open` tells."""
    try:
        checkpoint = latest_checkpoint(path / "checkpoints")
        saved = None if checkpoint is None else read_manifest(checkpoint)["extra"].get("config")
        if saved is not None:
            return dict(saved)
        return read_yaml(path / "config.yaml") if (path / "config.yaml").exists() else None
    except UserError:
        return None


class Log(Protocol):
    """Another place for metrics."""

    def log(self, metrics: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


class RunDirectory:
    """`runs/NAME/`. Only the main process writes; the others hold it to find checkpoints.

    Attributes, once a stage has opened it: `of_checkpoints` (what every checkpoint says of the run: its configuration and
    fingerprints), `notes` (what is to be said at the start), `first_weights` (what --init-from names; None without it, or
    where it is gone and nothing needs it).
    """

    def __init__(self, path: Path, writes: bool) -> None:
        self.path = path
        self.writes = writes
        self.checkpoints = path / "checkpoints"
        self.of_checkpoints: dict[str, Any] = {}
        self.notes: tuple[str, ...] = ()
        self.first_weights: Path | None = None
        self._metrics = path / "metrics.jsonl"
        self._lock: Any = None
        self._tensorboard: Any = None
        self.more_logs: list[Log] = []  # only where this process writes

    @property
    def saved_note(self) -> Path:
        """The file that says that a checkpoint was saved here once, whatever became of it."""
        return self.path / ".saved"

    def open(
        self, config: StageConfig, content: Mapping[str, str] | None = None, layout: Mapping[str, int] | None = None
    ) -> None:
        """Create the directory, or check that it belongs to the same configuration, but for what a continued run may change,
        and to the same content of files. `config` is resolved. A setting that is missing in a recorded configuration has its
        default there. Sets `of_checkpoints` and `notes`. No other run can open it until this one is closed or its process
        ends.

        Args:
            content: fingerprints of what the configuration names, as `continuing.CONTENT` calls it.
            layout: of this run, as a checkpoint's manifest has it.

        Raises:
            UserError: another run is going on in it; it holds a run of another configuration or content; which checkpoint to
                go on from is not known; it cannot be written.
        """
        if not self.writes:
            return
        path = self.path / "config.yaml"
        try:
            recorded = path.exists()
            self.path.mkdir(parents=True, exist_ok=True)
            if self._lock is None:
                self._lock = take_lock(self.path)
            for folder in (self.checkpoints, self.path / "reference"):  # on a full disk that is room
                tidy(folder)
            manifest = self._last_manifest()
            moved = self._check_same(config, manifest)
            same = check_content(config, content or {}, manifest and manifest["extra"], moved)
            self.of_checkpoints = {"content": same, "config": record_of(config)}
            for folder in (self.path, self.checkpoints):
                folder.mkdir(parents=True, exist_ok=True)
                trial = folder / ".trial.tmp"
                trial.write_bytes(b"")
                trial.unlink()
            write_atomically(path, dump_yaml(record_of(config)).encode())
        except OSError as error:
            where = error.filename or self.path
            raise UserError(f"--run-dir {self.path}: cannot be written: {where}: {error.strerror}") from None
        self.notes = tuple(self._remarks(manifest, layout))
        if manifest is None:
            self.saved_note.unlink(missing_ok=True)
        if not recorded and manifest is not None and "config" not in manifest["extra"]:
            self.notes += ("config.yaml is missing: the settings of the run so far are not known, and not compared",)

    def _last_manifest(self) -> dict[str, Any] | None:
        """Of the checkpoint that the run goes on from; None where it begins. Raises `UserError` where that cannot be told,
        or a new beginning would throw away the metrics behind checkpoints that are gone."""
        checkpoint = latest_checkpoint(self.checkpoints)
        if checkpoint is not None:
            return read_manifest(checkpoint)
        pointer, lines = self.checkpoints / "latest", self._lines()
        # A step's line is written before its checkpoint, while the one before may not be whole either.
        named = sum('"checkpoint"' in line for _, line in lines) > 2
        if lines and (named or self.saved_note.exists() or os.path.lexists(pointer)):
            raise UserError(
                f"{self.checkpoints}: checkpoints were saved here, and none is whole now: put one back and write its name "
                f"into {pointer}, choose another --run-dir, or remove {self._metrics} and {pointer} to begin anew"
            )
        return None

    def _remarks(self, manifest: Mapping[str, Any] | None, layout: Mapping[str, int] | None) -> Iterator[str]:
        if manifest is None:
            if lines := len(self._lines()):
                yield f"{lines} recorded step(s) had no checkpoint yet: beginning anew"
            elif self.saved_note.exists():
                yield "checkpoints were saved here, and are gone with the metrics: beginning anew"
            return
        step, named = manifest["step"], latest_checkpoint(self.checkpoints)
        if named is not None and step_of(named) != step:
            yield f"latest names {named.name}, which was saved as step_{step}: the run goes on after step {step}"
        if missing := step - len({line for line, _ in self._lines() if line <= step}):
            yield f"metrics.jsonl lacks {missing} of the {step} step(s) before"
        yield from changed_layout(manifest["layout"], layout)
        newer = [path.name for path in whole_checkpoints(self.checkpoints) if (step_of(path) or 0) > step and path != named]
        if newer:
            yield (
                f"latest names step_{step}: {', '.join(newer[:6])} stay(s) until this run comes to the same "
                f"step, and their steps leave metrics.jsonl"
            )

    def _check_same(self, config: StageConfig, manifest: Mapping[str, Any] | None) -> dict[str, tuple[Any, Any]]:
        """What is compared by content and lies elsewhere now: setting -> (path before, path now). What the checkpoint says
        of the configuration counts, so that a config.yaml that was edited since changes nothing; older ones say nothing."""
        path = self.path / "config.yaml"
        saved = None if manifest is None else manifest["extra"].get("config")
        if saved is None and not path.exists():
            return {}
        try:
            values = read_yaml(path) if saved is None else dict(saved)
            require(
                values.get("stage") == config.stage_name, f"a run of stage {values.get('stage')}, not {config.stage_name}"
            )
            recorded = build_config(type(config), values).resolved()
        except UserError as error:
            raise UserError(f"{path}: {error}; remove the directory or choose another --run-dir") from None
        old, new, kind = flatten(plain(recorded)), flatten(plain(config)), type(config)
        differing = {name: (old[name], new[name]) for name in sorted(new) if old[name] != new[name]}
        differing = {name: both for name, both in differing.items() if name not in changeable(kind)}
        moved = {name: both for name, both in differing.items() if name in compared_by_content(kind) and None not in both}
        refused = {name: both for name, both in differing.items() if name not in moved}
        if refused:
            raise another_configuration(self.path, refused)
        return moved

    def start_logging(self, first_step: int) -> None:
        """Drop what was recorded at or after `first_step` (0-based steps count from 1 in the metrics) and open the logs, at
        the start of a run or when it goes back."""
        if not self.writes:
            return
        if self._tensorboard is not None:
            with naming(self.path / "tensorboard"):
                self._tensorboard.close()
        from torch.utils.tensorboard import SummaryWriter

        kept = [line for step, line in self._lines() if step <= first_step]
        write_atomically(self._metrics, "".join(line + "\n" for line in kept).encode())
        with naming(self.path / "tensorboard"):
            self._tensorboard = SummaryWriter(str(self.path / "tensorboard"), purge_step=first_step + 1)

    def _lines(self) -> list[tuple[int, str]]:
        """Steps and lines of metrics.jsonl; blank ones, and a last one that was torn by a kill, are left out."""
        try:
            lines = self._metrics.read_bytes().rstrip().split(b"\n") if self._metrics.exists() else []
        except OSError as error:
            raise UserError(f"{self._metrics}: cannot be read: {error.strerror}") from None
        found = []
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                step, text = json.loads(line)["step"], line.decode()
            except (ValueError, LookupError, TypeError, RecursionError):
                if number == len(lines) and line.strip(b"\0")[:1] in (b"", b"{"):  # zeros: of a machine that lost power
                    break
                step, text = None, ""
            if not isinstance(step, int):
                raise UserError(f"{self._metrics}:{number}: not a step's metrics: mend the line, or take it out")
            found.append((step, text.rstrip("\r")))
        return found

    def log(self, metrics: dict[str, Any]) -> None:
        """Append one step's metrics (`step` among them) to metrics.jsonl and TensorBoard, histograms to the latter only."""
        if not self.writes:
            return
        numbers = {name: value for name, value in metrics.items() if not isinstance(value, Histogram)}
        with naming(self._metrics), open(self._metrics, "a") as file:
            file.write(json.dumps(numbers) + "\n")
        with naming(self.path / "tensorboard"):
            for name, value in metrics.items():
                if isinstance(value, Histogram):
                    self._add_histogram(name, value, metrics["step"])
                elif isinstance(value, (int, float)) and name != "step":
                    self._tensorboard.add_scalar(name, value, metrics["step"])
        for log in self.more_logs:
            log.log(numbers)

    def _add_histogram(self, name: str, histogram: Histogram, step: int) -> None:
        edges = [histogram.edges[1], *histogram.edges[1:-1], histogram.edges[-2]]  # an open bin is at its one border
        pairs = [((low + high) / 2, n) for (low, high), n in zip(pairwise(edges), histogram.counts, strict=True) if n]
        if pairs:
            self._tensorboard.add_histogram_raw(
                name, min=pairs[0][0], max=pairs[-1][0], num=sum(histogram.counts), sum=sum(x * n for x, n in pairs),
                sum_squares=sum(x * x * n for x, n in pairs), bucket_limits=edges[1:], bucket_counts=histogram.counts,
                global_step=step,
            )  # fmt: skip

    @property
    def replies(self) -> Path:
        """What a judge's server has said."""
        return self.path / "judge"

    def rollouts_of(self, step: int) -> Path:
        """The file of a step's responses, with rewards and reasons."""
        return self.path / "rollouts" / f"step_{step}.jsonl"

    def close(self) -> None:
        """Flush the logs, and let another run open the directory."""
        for log in self.more_logs:
            log.close()
        if self._tensorboard is not None:
            with naming(self.path / "tensorboard"):
                self._tensorboard.close()
        if self._lock is not None:
            self._lock.close()
            self._lock = None
