"""Measure curation on planted damage: recall and false drops by kind, near duplicates against brute force, templates with
other numbers, benchmark problems in other spellings, and runs that are killed. One JSON object a check.

tools/check_curation.py --data FOLDER, which holds gsm8k_train.jsonl and humaneval.jsonl.gz as they are downloaded.
"""

from __future__ import annotations

import hashlib
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megatron_ring.config.cli import parse
from megatron_ring.curation.near import jaccard, word_grams
from megatron_ring.curation.options import Annotate, Clean, Decontaminate, Exact, Near
from megatron_ring.curation.pipeline import run_recipe
from megatron_ring.curation.recipe import Recipe, Source
from megatron_ring.curation.text import words
from megatron_ring.errors import UserError, run_main
from tools.planted_rows import (
    CODE_DAMAGE,
    MATH_DAMAGE,
    Planted,
    code_rows,
    math_rows,
    near_copy,
    respelled,
)

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, kw_only=True)
class CheckOptions:
    """What is measured."""

    data: Path
    """Folder with gsm8k_train.jsonl and humaneval.jsonl.gz."""
    share: float = 0.02
    """Share of the rows that gets each kind of damage."""
    rows: int = 7473
    """Problems of GSM8K that are used."""
    kills: int = 20
    """How often a run is killed."""
    seed: int = 1
    """Seed of every draw."""


def plant(rows: list[dict[str, Any]], code: list[dict[str, Any]], share: float, seed: int) -> tuple[Planted, Planted]:
    """The mathematics and the code, damaged."""
    rng = random.Random(seed)
    math, programs = Planted(), Planted()
    order = list(range(len(rows)))
    rng.shuffle(order)
    count = max(1, int(len(rows) * share))
    held, order = order[:count], order[count:]  # these become the benchmark and nothing else
    kinds = [kind for kind in (*MATH_DAMAGE, "malformed", "repaired") for _ in range(count)]
    for place, number in enumerate(order):
        row, kind = dict(rows[number]), kinds[place] if place < len(kinds) else None
        if kind in MATH_DAMAGE:
            MATH_DAMAGE[kind](row, rng)
        line = json.dumps(row, ensure_ascii=False)
        if kind == "malformed":
            line = rng.choice((line[: len(line) // 2], "[1, 2]", line + "}", "\x00\x01"))
        if kind == "repaired":
            math.repaired[len(math.lines) + 1] = row["problem"]
            broken = row["problem"].encode().decode("latin-1") if not row["problem"].isascii() else row["problem"]
            row["problem"] = rng.choice((f"<p>{broken}</p>", f"\ufeff{broken}\u200b", f"{broken}<br>"))
            line = json.dumps(row)
        math.lines.append(line)
        if kind is not None and kind != "repaired":
            math.damage[len(math.lines)] = kind
    clean = [number for number in range(1, len(math.lines) + 1) if number not in math.damage and number not in math.repaired]
    rng.shuffle(clean)
    wanted = {"exact": count, "near": count}
    for original in clean:
        kind = next((kind for kind, left in wanted.items() if left), None)
        if kind is None:
            break
        row = json.loads(math.lines[original - 1])
        text = row["problem"]
        row["problem"] = (respelled if kind == "exact" else near_copy)(text, rng)
        if kind == "near" and not Near.threshold <= similarity(text, row["problem"]) < 1:
            continue
        math.lines.append(json.dumps(row, ensure_ascii=False))
        math.damage[len(math.lines)], math.pairs[len(math.lines)] = kind, original
        wanted[kind] -= 1
    for number in held:
        row = dict(rows[number])
        math.benchmark.append({"problem": row["problem"], "answer": row["answer"]})
        row["problem"] = respelled(row["problem"], rng)
        math.lines.append(json.dumps(row, ensure_ascii=False))
        math.damage[len(math.lines)] = "benchmark"
    kinds = [kind for kind in CODE_DAMAGE for _ in range(max(1, len(code) // 10))]
    for place, given in enumerate(code):
        row, tests = dict(given), json.loads(given["input_output"])
        if place < len(kinds):
            CODE_DAMAGE[kinds[place]](tests, rng)
            programs.damage[place + 1] = kinds[place]
        programs.lines.append(json.dumps({**row, "input_output": json.dumps(tests)}))
    return math, programs


def similarity(one: str, other: str) -> float:
    """Jaccard similarity of the word 5-grams of two texts."""
    first, second = (frozenset(word_grams(words(text), Near.words)) for text in (one, other))
    return jaccard(first, second)


def write(folder: Path, math: Planted, programs: Planted) -> Recipe:
    """The planted files, and the recipe that cleans them."""
    for name, planted in (("math", math), ("code", programs)):
        (folder / f"{name}.jsonl").write_text("\n".join(planted.lines) + "\n", encoding="utf-8", errors="surrogatepass")
    bench = "".join(json.dumps(row) + "\n" for row in math.benchmark)
    (folder / "bench.jsonl").write_text(bench, encoding="utf-8")
    sources = tuple(Source(name, (folder / f"{name}.jsonl",)) for name in ("math", "code"))
    steps = (Clean(languages=("en",)), Exact(), Near(), Decontaminate(benchmarks=(folder / "bench.jsonl",)), Annotate())
    return Recipe(sources, steps)


def check_planted(options: CheckOptions, folder: Path) -> dict[str, Any]:
    """Recall and false drops by kind."""
    rows = math_rows(options.data / "gsm8k_train.jsonl")[: options.rows]
    math, programs = plant(rows, code_rows(options.data / "humaneval.jsonl.gz"), options.share, options.seed)
    recipe = write(folder, math, programs)
    run_recipe(recipe, folder / "out", 2, lambda text: print(text, file=sys.stderr))
    reasons: dict[tuple[str, int], tuple[str, str]] = {}
    for line in (folder / "out" / "ledger.jsonl").read_text().splitlines():
        entry = json.loads(line)
        if entry["action"] == "dropped":
            source, _, number = entry["id"].partition("-")
            reasons[source, int(number)] = entry["reason"], entry["evidence"]
    result: dict[str, Any] = {"rows": len(math.lines) + len(programs.lines)}
    recall: Counter[str] = Counter()
    planted: Counter[str] = Counter()
    false: list[tuple[str, int]] = []
    excused = {original for copy, original in math.pairs.items() if ("math", copy) not in reasons}
    for source, planting in (("math", math), ("code", programs)):
        for number in range(1, len(planting.lines) + 1):
            kind, dropped = planting.damage.get(number), (source, number) in reasons
            if kind is not None:
                planted[kind] += 1
                original = planting.pairs.get(number)
                recall[kind] += dropped or (original is not None and (source, original) in reasons)
            elif dropped and not (source == "math" and number in excused):
                false.append((source, number))
    clean = sum(len(p.lines) - len(p.damage) for p in (math, programs))
    result["recall"] = {kind: round(recall[kind] / count, 4) for kind, count in planted.items()}
    result["planted"] = dict(planted)
    by_reason = Counter(reasons[place][0] for place in false)
    result["false_drops"] = {reason: round(count / clean, 5) for reason, count in by_reason.most_common()}
    result["false_samples"] = [[reasons[place][0], f"{place[0]}:{place[1]}", reasons[place][1]] for place in false[:20]]
    result["repaired"] = _repaired(folder / "out" / "kept.jsonl", math)
    return result


def _repaired(path: Path, math: Planted) -> float:
    """The share of damaged texts that are again what they were."""
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        found[row["id"]] = row["prompt"]
    wanted = {f"math-{number}": " ".join(text.split()) for number, text in math.repaired.items()}
    return round(
        sum(" ".join(found.get(name, "").split()) == text for name, text in wanted.items()) / max(1, len(wanted)), 4
    )


def check_kills(options: CheckOptions, folder: Path) -> dict[str, Any]:
    """A run that is killed again and again ends with the bytes of one that is not."""
    rng = random.Random(options.seed)
    (folder / "r.yaml").write_text(
        "sources: [{name: math, files: math.jsonl}, {name: code, files: code.jsonl}]\n"
        "steps: [{clean: {languages: [en]}}, exact, near, {decontaminate: {benchmarks: bench.jsonl}}, annotate]\n"
    )

    def command(out: str) -> list[str]:
        return [
            sys.executable,
            "-m",
            "megatron_ring.curate",
            str(folder / "r.yaml"),
            "--out",
            str(folder / out),
            "--processes",
            "2",
        ]

    started = time.monotonic()
    subprocess.run(command("whole"), cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    seconds, killed = time.monotonic() - started, 0
    while True:
        process = subprocess.Popen(command("killed"), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(0.3 + rng.random() * seconds * 0.6 if killed < options.kills else None)
            if process.returncode == 0 and killed < options.kills:  # done too soon: begin again
                subprocess.run(["rm", "-r", str(folder / "killed")], check=True)
                continue
            break
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            killed += 1
    names = ("kept.jsonl", "dropped.jsonl", "ledger.jsonl", "summary.json", "report.html")
    same = all(_digest(folder / "whole" / name) == _digest(folder / "killed" / name) for name in names)
    return {"kills": killed, "same_bytes": same, "seconds_whole": round(seconds, 1)}


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main() -> None:
    """Command line."""
    options = parse(CheckOptions, "tools/check_curation.py", __doc__ or "")
    for name in ("gsm8k_train.jsonl", "humaneval.jsonl.gz"):
        if not (options.data / name).is_file():
            raise UserError(f"--data {options.data}: has no {name}: download it there")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print(json.dumps({"check": "planted", **check_planted(options, folder)}), flush=True)
        from tools.check_duplicates import check_near, check_spellings, check_templates

        rows = math_rows(options.data / "gsm8k_train.jsonl")[: options.rows]
        print(json.dumps({"check": "near", **check_near(rows, options.seed)}), flush=True)
        print(json.dumps({"check": "templates", **check_templates(rows, options.seed)}), flush=True)
        print(json.dumps({"check": "spellings", **check_spellings(rows, options.seed, folder)}), flush=True)
        if options.kills:
            print(json.dumps({"check": "kills", **check_kills(options, folder)}), flush=True)


if __name__ == "__main__":
    run_main(main)
