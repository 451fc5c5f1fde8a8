"""Which files an evaluation's flags name for which benchmark, and their problems."""

from __future__ import annotations

from pathlib import Path

from megatron_ring.benchmarks.code_sets import Window
from megatron_ring.benchmarks.result import describe
from megatron_ring.benchmarks.rows import small
from megatron_ring.benchmarks.table import BENCHMARKS, SUITES, benchmark_of, load
from megatron_ring.config.checks import require
from megatron_ring.config.evaluate import EvaluateConfig
from megatron_ring.data.public_rows import public_files, read_public_rows, sha256_of
from megatron_ring.errors import UserError
from megatron_ring.rollout.plans import Task, budget_of, check_budgets


def read_tasks(config: EvaluateConfig) -> tuple[list[Task], list[str]]:
    """What is to be measured, and the suite's benchmarks for which there is no file. Raises `UserError` that names the flag,
    or the file and line."""
    paths = _paths_of(config)
    suite = SUITES[config.suite] if config.suite else None
    if suite is not None and config.benchmark_dir is not None:
        for name in suite.names:
            found = _file_of(config.benchmark_dir, name)
            if name not in paths and found is not None:
                paths[name] = [found]
    missing = [name for name in suite.names if name not in paths] if suite is not None else []
    where = f"{config.benchmark_dir} holds" if config.benchmark_dir else "--benchmark names"
    nothing = f"--suite {config.suite}: {where} no file of its benchmarks ({', '.join(missing)}): give NAME=PATH"
    require(bool(paths), nothing)
    window = Window.parse(config.window, "--window") if config.window else suite.window if suite else None
    require(
        config.window is None or "livecodebench" in paths,
        "--window is of livecodebench, which is not measured: leave it out",
    )
    tasks = [_task(name, given, window, config) for name, given in paths.items()]
    check_budgets(config, tasks)
    return tasks, missing


def _paths_of(config: EvaluateConfig) -> dict[str, list[Path]]:
    paths: dict[str, list[Path]] = {}
    for pair in config.benchmark:
        name, sign, path = pair.partition("=")
        require(bool(sign and name and path), f"--benchmark {pair}: give NAME=PATH")
        require(name in BENCHMARKS, f"--benchmark {pair}: unknown benchmark {name!r}: use one of {', '.join(BENCHMARKS)}")
        paths.setdefault(name, []).append(Path(path))
    return paths


def _file_of(folder: Path, name: str) -> Path | None:
    """The file or folder of a benchmark by its name, whatever its ending. Raises `UserError` for several."""
    require(folder.is_dir(), f"--benchmark-dir {folder}: no such folder")
    found = sorted(path for path in folder.iterdir() if path.name.lower().split(".")[0] == name)
    if len(found) > 1:
        raise UserError(f"--benchmark-dir {folder}: {found[0].name} and {found[1].name} are of {name}: keep one of the two")
    return found[0] if found else None


def _task(name: str, paths: list[Path], window: Window | None, config: EvaluateConfig) -> Task:
    benchmark = benchmark_of(name, window)
    files = [file for path in paths for file in public_files(path)]
    rows = [(place, small(row)) for file in files for place, row in read_public_rows(file)]
    try:
        loaded = load(benchmark, rows)
    except UserError as error:
        raise UserError(str(error) if str(error).startswith(str(files[0].parent)) else f"{paths[0]}: {error}") from None
    samples, budget = config.benchmark_samples or benchmark.samples, budget_of(config, benchmark, loaded.problems)
    if config.token_budget is not None and budget is None:
        loaded.notes.append("without the token budget: its answers have no majority")
    source = {"file": ", ".join(map(str, paths)), "sha256": sha256_of(files), "rows": len(rows), "notes": loaded.notes}
    if name == "livecodebench":
        source["window"] = str(window) if window is not None else ":"
    problems = tuple(loaded.problems)
    return Task(benchmark, problems, samples, describe(benchmark, problems, source), budget, config.budget_rule)
