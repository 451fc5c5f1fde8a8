#!/usr/bin/env python
"""Compare runs step by step: the largest relative difference of a metric to the first run, as one JSON object.

python tools/compare_runs.py runs/one runs/tp2 runs/pp2 [--metric loss] [--tolerance 1e-4]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from megatron_ring.analysis.read_run import read_run
from megatron_ring.errors import UserError, run_main


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("runs", type=Path, nargs="+", help="run directories; the first is what the others are compared with")
    parser.add_argument("--metric", default="loss", help="key of metrics.jsonl (default: loss)")
    parser.add_argument("--tolerance", type=float, help="exit with status 1 above this relative difference (default: none)")
    args = parser.parse_args()
    series = {}
    for path in args.runs:
        series[path] = [row[args.metric] for row in read_run(path).metrics if args.metric in row]
        if not series[path]:
            raise UserError(f"{path}: no step has the metric {args.metric}")
    first = series[args.runs[0]]
    differences = {}
    for path, values in series.items():
        if len(values) != len(first):
            raise UserError(f"{path}: {len(values)} steps, {args.runs[0]} has {len(first)}")
        differences[str(path)] = max(abs(a - b) / abs(b) for a, b in zip(values, first, strict=True))
    print(json.dumps({"metric": args.metric, "steps": len(first), "largest_relative_difference": differences}, indent=1))
    if args.tolerance is not None and max(differences.values()) > args.tolerance:
        raise SystemExit(1)


if __name__ == "__main__":
    run_main(main)
