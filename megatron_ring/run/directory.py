"""The run directory: resolved configuration, metrics, TensorBoard, where checkpoints go. See README for the layout.

A run is resumed by the same command. Metrics of steps after the last whole checkpoint are dropped then: they will be
written again, equal.
"""

from __future__ import annotations

import dataclasses
import json
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

from megatron_ring.algorithm.histogram import Histogram
from megatron_ring.config.checks import require
from megatron_ring.config.metadata import changeable
from megatron_ring.config.stage import StageConfig
from megatron_ring.config.yaml_file import build_config, dump_yaml, read_yaml
from megatron_ring.data.writing import write_atomically
from megatron_ring.errors import UserError


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


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, keys joined by dots."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat.update(flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return flat


class Log(Protocol):
    """Another place for metrics."""

    def log(self, metrics: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


class RunDirectory:
    """`runs/NAME/`. Only the main process writes; the others hold it to find checkpoints."""

    def __init__(self, path: Path, writes: bool) -> None:
        self.path = path
        self.writes = writes
        self.checkpoints = path / "checkpoints"
        self._metrics = path / "metrics.jsonl"
        self._tensorboard: Any = None
        self.more_logs: list[Log] = []  # only where this process writes

    def open(self, config: StageConfig) -> None:
        """Create the directory, or check that it belongs to the same configuration, but for what a continued run may change.
        `config` is resolved. A setting that is missing in a recorded configuration has its default there.

        Raises:
            UserError: it holds a run of another configuration, or cannot be written.
        """
        if not self.writes:
            return
        path = self.path / "config.yaml"
        if path.exists():
            self._check_same(path, config)
        values = {"stage": config.stage_name, **plain(config)}
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            write_atomically(path, dump_yaml(values).encode())
        except OSError as error:
            raise UserError(f"--run-dir {self.path}: cannot be written: {error.strerror}") from None

    def _check_same(self, path: Path, config: StageConfig) -> None:
        try:
            values = read_yaml(path)
            require(
                values.get("stage") == config.stage_name, f"a run of stage {values.get('stage')}, not {config.stage_name}"
            )
            recorded = build_config(type(config), values).resolved()
        except UserError as error:
            raise UserError(f"{path}: {error}; remove the directory or choose another --run-dir") from None
        old, new, may_change = flatten(plain(recorded)), flatten(plain(config)), changeable(type(config))
        differing = sorted(name for name in new if old[name] != new[name] and name not in may_change)
        if differing:
            shown = ", ".join(f"{name} {old[name]!r} -> {new[name]!r}" for name in differing[:4])
            more = f" and {len(differing) - 4} more" if len(differing) > 4 else ""
            raise UserError(
                f"--run-dir {self.path}: holds a run of another configuration ({shown}{more}); choose another --run-dir"
            )

    def start_logging(self, first_step: int) -> None:
        """Drop what was recorded at or after `first_step` (0-based steps count from 1 in the metrics) and open the logs, at
        the start of a run or when it goes back."""
        if not self.writes:
            return
        if self._tensorboard is not None:
            self._tensorboard.close()
        from torch.utils.tensorboard import SummaryWriter

        kept = [line for line in self._lines() if json.loads(line)["step"] <= first_step]
        write_atomically(self._metrics, "".join(line + "\n" for line in kept).encode())
        self._tensorboard = SummaryWriter(str(self.path / "tensorboard"), purge_step=first_step + 1)

    def _lines(self) -> list[str]:
        """Whole lines of metrics.jsonl; a line torn by a kill is dropped."""
        if not self._metrics.exists():
            return []
        lines = self._metrics.read_text().split("\n")[:-1]
        for number, line in enumerate(lines):
            try:
                json.loads(line)
            except ValueError:
                if number == len(lines) - 1:
                    return lines[:-1]
                raise UserError(f"{self._metrics}:{number + 1}: not a JSON object") from None
        return lines

    def log(self, metrics: dict[str, Any]) -> None:
        """Append one step's metrics (`step` among them) to metrics.jsonl and TensorBoard, histograms to the latter only."""
        if not self.writes:
            return
        numbers = {name: value for name, value in metrics.items() if not isinstance(value, Histogram)}
        with open(self._metrics, "a") as file:
            file.write(json.dumps(numbers) + "\n")
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

    def rollouts_of(self, step: int) -> Path:
        """The file of a step's responses, with rewards and reasons."""
        return self.path / "rollouts" / f"step_{step}.jsonl"

    def close(self) -> None:
        """Flush the logs."""
        for log in self.more_logs:
            log.close()
        if self._tensorboard is not None:
            self._tensorboard.close()
