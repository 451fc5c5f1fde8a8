"""The commands: a recipe from the command line, one step over files, check mode, help, and mistakes in one line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from megatron_ring import curate
from megatron_ring.errors import run_main
from tests.curation.conftest import Curated, write_jsonl
from tests.processes import run
from tools import curate as step_tool

ROWS = [{"q": f"How many days are in {n} weeks?", "final": str(7 * n)} for n in (2, 3, 3)]
FIELDS = ("--fields", "prompt=q", "answer=final", "--domain", "math")


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(
        sys, "argv", ["curate.py", "near", *arguments] if arguments[0].startswith("-") else ["curate.py", *arguments]
    )
    try:
        run_main(step_tool.main)
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def test_a_recipe(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", ROWS)
    (tmp_path / "r.yaml").write_text(
        "sources: [{name: mine, files: a.jsonl, fields: {prompt: q, answer: final}, domain: math}]\nsteps: [clean, exact]\n"
    )
    done = run([sys.executable, "-m", "megatron_ring.curate", str(tmp_path / "r.yaml"), "--processes", "1"])
    assert done.returncode == 0, done.stderr
    assert "exact: 3 read, 2 kept, 1 dropped (exact_duplicate 1)" in done.stdout and "2 of 3 rows stay" in done.stdout
    assert [row["id"] for row in Curated(tmp_path / "r").kept] == ["mine-1", "mine-2"]


def test_help_loads_nothing_heavy() -> None:
    done = run([sys.executable, "-X", "importtime", "-m", "megatron_ring.curate", "--help"])
    loaded = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert done.returncode == 0 and not loaded & {"torch", "megatron", "transformers", "numpy"}
    assert "--processes" in done.stdout and "RECIPE" in done.stdout.upper()


def test_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "r.yaml").write_text("sources:\n  - {files: gone.jsonl}\n")
    (tmp_path / "file").write_text("")
    write_jsonl(tmp_path / "a.jsonl", ROWS[:1])
    (tmp_path / "s.yaml").write_text("sources: [{files: a.jsonl}]\n")
    for config, said in (
        (curate.CurateConfig(recipe=tmp_path / "r.yaml"), "r.yaml:2: "),
        (curate.CurateConfig(recipe=tmp_path / "no.yaml"), "no.yaml: No such file"),
        (curate.CurateConfig(recipe=tmp_path / "r.yaml", processes=0), "--processes is 0"),
        (curate.CurateConfig(recipe=tmp_path / "s.yaml"), "a.jsonl:1: of no known form; the row has q, final"),
        (curate.CurateConfig(recipe=tmp_path / "s.yaml", out=tmp_path / "file"), "--out"),
    ):
        with pytest.raises(SystemExit) as ended:
            run_main(lambda config=config: curate.main(config))  # type: ignore[misc]
        shown = capsys.readouterr().err
        assert ended.value.code == 2 and said in shown and shown.count("\n") == 1, shown


def test_dry_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_jsonl(tmp_path / "a.jsonl", ROWS)
    (tmp_path / "r.yaml").write_text("sources: [{files: a.jsonl}]\nsteps: [near]\n")
    curate.main(curate.CurateConfig(recipe=tmp_path / "r.yaml", dry_run=True))
    assert "steps: read, near" in capsys.readouterr().out and not (tmp_path / "r").exists()


def test_one_step(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)
    out = str(tmp_path / "out")
    assert call(monkeypatch, "exact", "--input", str(path), "--out", out, *FIELDS, "--set", "prefer=longest") == 0
    assert len(Curated(tmp_path / "out").kept) == 2
    assert call(monkeypatch, "exact", "--input", str(path), "--out", out, *FIELDS, "--set", "prefer=shortest") == 2
    assert call(monkeypatch, "exact", "--input", str(path), "--out", out, "--fields", "question=q") == 2
    assert call(monkeypatch, "exact", "--input", str(tmp_path / "gone.jsonl"), "--out", out) == 2


def test_check_mode(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (
        "Weng earns 12 dollars an hour for babysitting. Yesterday she just did 50 minutes of babysitting. How much "
        "did she earn?"
    )
    rows = [
        {"id": str(n), "domain": "math", "prompt": said, "answer": "1"}
        for n, said in enumerate((text, "How many days are in May?"))
    ]
    path = write_jsonl(tmp_path / "train.jsonl", rows)
    bench = write_jsonl(tmp_path / "bench.jsonl", [{"question": text}])
    clean = write_jsonl(tmp_path / "clean.jsonl", [{"question": "What is the capital city of the second largest country?"}])
    arguments = ("decontaminate", "--input", str(path), "--out", str(tmp_path / "out"), "--check", "--benchmarks")
    assert call(monkeypatch, *arguments, str(bench)) == 1
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found == {"rows": 2, "found": 1, "by_reason": {"benchmark:bench": 1}}
    assert not (tmp_path / "out" / "kept.jsonl").exists() and (tmp_path / "out" / "ledger.jsonl").exists()
    assert call(monkeypatch, *arguments, str(clean)) == 0
