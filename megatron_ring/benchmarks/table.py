"""All benchmarks in one table, the protocols of the papers, and the scores that they publish."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from megatron_ring.benchmarks import calls, choices, code_sets, grids, math_sets, open_ended, quantities, reading
from megatron_ring.benchmarks.code_sets import Window
from megatron_ring.benchmarks.problem import Benchmark, Loaded, PlacedRow
from megatron_ring.benchmarks.rows import each
from megatron_ring.errors import UserError

_MATH = each(math_sets.plain, distinct=True)
_AIME = each(math_sets.integer, distinct=True)
_LIVE_MATH = each(math_sets.live_math, distinct=True)

_ALL = (
    Benchmark("math-500", "MATH-500", _MATH, 4, "accuracy", length=4),
    Benchmark("aime-2024", "AIME 2024", _AIME, 32, "accuracy", length=9),
    Benchmark("aime-2025", "AIME 2025", _AIME, 32, "accuracy", length=9),
    Benchmark("aime-2026", "AIME 2026", _AIME, 32, "accuracy", length=9),
    Benchmark("cnmo-2024", "CNMO 2024", _LIVE_MATH, 32, "accuracy", length=9),
    Benchmark("livemathbench", "LiveMathBench", _LIVE_MATH, 8, "accuracy", length=8),
    Benchmark("minerva-math", "MinervaMath", each(math_sets.minerva, distinct=True), 4, "accuracy", length=4),
    Benchmark("olympiadbench-math", "OlympiadBench (math)", each(quantities.olympiad("math")), 4, "accuracy",
              quantities.score_olympiad, length=7),
    Benchmark("olympiadbench-physics", "OlympiadBench (physics)", each(quantities.olympiad("physics")), 4, "accuracy",
              quantities.score_olympiad, length=7),
    Benchmark("theoremqa", "TheoremQA", each(quantities.theorem_qa), 1, "accuracy", quantities.score_theorem_qa, length=4),
    Benchmark("gsm8k", "GSM8K", _MATH, 1, "accuracy", length=2),
    Benchmark("math-file", "Problems and answers (HMMT and the like)", _MATH, 32, "accuracy", length=9),
    Benchmark("livecodebench", "LiveCodeBench", each(code_sets.live_code(Window())), 4, "all tests pass", length=8),
    Benchmark("humaneval", "HumanEval", each(code_sets.humaneval), 1, "all tests pass", length=2),
    Benchmark("humaneval-plus", "HumanEval+", each(code_sets.plus(code_sets.humaneval)), 1, "all tests pass", length=2),
    Benchmark("mbpp", "MBPP", each(code_sets.mbpp), 1, "all tests pass", length=2),
    Benchmark("mbpp-plus", "MBPP+", each(code_sets.plus(code_sets.mbpp)), 1, "all tests pass", length=2),
    Benchmark("codeforces", "Codeforces", each(code_sets.codeforces), 8, "all tests pass", length=10),
    Benchmark("gpqa-diamond", "GPQA-diamond", each(choices.gpqa), 8, "accuracy", choices.score, length=6),
    Benchmark("supergpqa", "SuperGPQA", each(choices.super_gpqa), 1, "EM", choices.score, length=5),
    Benchmark("mmlu-pro", "MMLU-Pro", each(choices.mmlu_pro), 1, "EM", choices.score, length=4),
    Benchmark("arc-c", "ARC-Challenge", each(choices.arc_challenge), 1, "EM", choices.score, length=2),
    Benchmark("phybench", "PHYBench", each(math_sets.phybench), 4, "accuracy", length=8),
    Benchmark("bbh", "BIG-Bench Hard", each(reading.bbh), 1, "EM", reading.score_bbh, length=3),
    Benchmark("drop", "DROP", reading.read_drop, 1, "F1", reading.score_drop, length=2),
    Benchmark("musr", "MuSR", each(choices.musr), 1, "EM", choices.score, length=3),
    Benchmark("arc-agi", "ARC-AGI", grids.read_arc_agi, 1, "all grids right", grids.score, length=10),
    Benchmark("bfcl-live", "BFCL Live", calls.read_bfcl, 1, "AST match", calls.score, length=2),
    Benchmark("ifeval", "IFEval", each(open_ended.ifeval), 1, "prompt, strict", length=3),
    Benchmark("simpleqa", "SimpleQA", each(open_ended.simple_qa), 1, "correct", judged="reference", length=2),
    Benchmark("alignbench", "AlignBench", each(open_ended.align_bench), 1, "score of 10", judged="score", length=3),
    Benchmark("fofo", "FoFo", each(open_ended.fofo), 1, "format correct", judged="rubric", length=3),
    Benchmark("arena-hard", "Arena-Hard", each(open_ended.arena_hard), 1, "win rate", judged="pairwise", length=4),
)  # fmt: skip
BENCHMARKS: dict[str, Benchmark] = {benchmark.name: benchmark for benchmark in _ALL}


@dataclass(frozen=True)
class Suite:
    """A paper's protocol: its benchmarks, and the window of LiveCodeBench."""

    names: tuple[str, ...]
    window: Window
    source: str


SUITES: dict[str, Suite] = {
    "ring-lite": Suite(
        ("aime-2024", "aime-2025", "math-500", "cnmo-2024", "livemathbench", "minerva-math", "livecodebench", "codeforces",
         "gpqa-diamond", "olympiadbench-math"),
        Window.parse("2024-08-01:2025-01-31", "window"), "Ring-lite report, arXiv 2506.14731, section 4.1",
    ),
    "ring-lite-2507": Suite(
        ("mmlu-pro", "gpqa-diamond", "supergpqa", "phybench", "math-500", "cnmo-2024", "aime-2024", "aime-2025",
         "livemathbench", "theoremqa", "olympiadbench-math", "livecodebench", "codeforces", "drop", "bbh", "arc-agi", "musr",
         "bfcl-live", "ifeval", "alignbench", "fofo", "arena-hard"),
        Window.parse("2024-08-01:2025-05-31", "window"), "Ring-lite-2507 post of its authors",
    ),
}  # fmt: skip

# Scores out of 100, as published. Codeforces: the percentile; its rating is 1830 in the 2507 post, which swaps the two.
PUBLISHED: dict[str, dict[str, float]] = {
    "ring-lite": {"gpqa-diamond": 61.05, "livecodebench": 60.66, "codeforces": 86.45, "olympiadbench-math": 79.95},
    "ring-lite-2507": {
        "mmlu-pro": 72.50, "gpqa-diamond": 69.35, "supergpqa": 40.05, "phybench": 28.51, "math-500": 97.95,
        "cnmo-2024": 75.09, "aime-2024": 79.79, "aime-2025": 72.92, "livemathbench": 83.37, "theoremqa": 70.00,
        "olympiadbench-math": 80.64, "livecodebench": 60.35, "codeforces": 92.16, "drop": 89.27, "bbh": 88.65,
        "arc-agi": 19.00, "musr": 77.19, "bfcl-live": 74.81, "ifeval": 84.66, "alignbench": 80.90, "fofo": 85.02,
        "arena-hard": 88.85,
    },
}  # fmt: skip


def benchmark_of(name: str, window: Window | None = None) -> Benchmark:
    """The benchmark of that name; LiveCodeBench within a window. Raises `UserError` for an unknown name."""
    if name not in BENCHMARKS:
        raise UserError(f"unknown benchmark {name!r}: use one of {', '.join(BENCHMARKS)}")
    benchmark = BENCHMARKS[name]
    if name == "livecodebench" and window is not None:
        return dataclasses.replace(benchmark, read=each(code_sets.live_code(window)))
    return benchmark


def load(benchmark: Benchmark, rows: list[PlacedRow]) -> Loaded:
    """The problems of a benchmark's rows. Raises `UserError` that names the place, or says why nothing is left."""
    loaded = benchmark.read(rows)
    if not loaded.problems:
        why = f" ({'; '.join(loaded.notes)})" if loaded.notes else ""
        raise UserError(f"no problem of {benchmark.title} is left of {len(rows):,} rows{why}: give its public file")
    return loaded
