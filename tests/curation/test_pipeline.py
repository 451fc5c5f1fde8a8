"""Runs as a whole: nothing is lost, the same bytes whatever the processes and however often a run is killed, nothing
twice."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_ring.curation import reading
from megatron_ring.curation.options import Annotate, Clean, Decontaminate, Exact, Near
from megatron_ring.curation.pipeline import run_recipe
from megatron_ring.curation.recipe import Recipe, Source
from megatron_ring.data.files import read_prompt_file
from megatron_ring.errors import UserError
from tests.curation.conftest import Curated, read_jsonl, write_jsonl
from tests.processes import environment

RESULTS = ("kept.jsonl", "dropped.jsonl", "ledger.jsonl", "summary.json", "report.html")
NAMES = ("Ann", "Bo", "Cy", "Di", "Ed")


def rows(count: int, seed: int = 1) -> list[dict[str, Any]]:
    """Problems, some of which are copies, contradict each other or ask for a choice."""
    rng = random.Random(seed)
    found = []
    for _ in range(count):
        a, b, name = rng.randint(2, 40), rng.randint(2, 9), rng.choice(NAMES)
        text = (
            f"{name} has {a} red marbles in a large bag and finds {b} more of them on the way home. How many "
            "marbles are there?"
        )
        answer = str(a + b + (rng.random() < 0.02))
        found.append({"problem": text + (" (A) 3 (B) 4 (C) 5" if rng.random() < 0.05 else ""), "answer": answer, "level": b})
    return found


BENCH = (
    "Weng earns 12 dollars an hour for babysitting. Yesterday she just did 50 minutes of babysitting. How much did she earn?"
)


def recipe(folder: Path, count: int = 300) -> Recipe:
    bench = {"problem": BENCH, "answer": "10"}
    first = write_jsonl(folder / "a.jsonl", [*rows(count), bench])
    second = write_jsonl(folder / "b.jsonl", rows(count, 2))
    path = write_jsonl(folder / "bench.jsonl", [bench])
    steps = (Clean(), Exact(), Near(), Decontaminate(benchmarks=(path,)), Annotate())
    return Recipe((Source("a", (first,)), Source("b", (second,))), steps)


def bytes_of(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in RESULTS}


LINE = st.one_of(
    st.text(max_size=40).map(lambda text: text.replace("\n", " ").replace("\r", " ")),
    st.builds(
        lambda text, answer, more: json.dumps({"problem": text, "answer": answer, **more}),
        st.one_of(
            st.none(),
            st.text(max_size=60),
            st.sampled_from(["What is 2+2?", "What is  2 + 2 ?", "Is it so?", "Find (a) x (b) y"]),
        ),
        st.one_of(
            st.none(), st.text(max_size=10), st.integers(), st.floats(), st.booleans(), st.just(["4"]), st.just({"a": 1})
        ),
        st.dictionaries(
            st.sampled_from(["solution", "options", "question_type", "level", "prompt", "domain"]), st.text(max_size=9)
        ),
    ),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=st.lists(LINE, max_size=25))
def test_nothing_is_lost(lines: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("any")
    good = json.dumps({"problem": "How many days are in 3 weeks?", "answer": "21"})
    content = "\n".join([good, good, good, *lines])
    (folder / "s.jsonl").write_text(content, encoding="utf-8", errors="surrogatepass")
    read = sum(bool(line.strip()) for line in content.encode("utf-8", "surrogatepass").split(b"\n"))
    source = Source("s", (folder / "s.jsonl",))
    run_recipe(
        Recipe((source,), (Clean(languages=("en",)), Exact(), Near(), Annotate())), folder / "out", 1, lambda text: None
    )
    found = Curated(folder / "out")
    assert found.summary["read"] == read == len(found.kept) + len(found.dropped)
    assert found.summary["kept"] == len(found.kept) and found.summary["dropped"] == len(found.dropped)
    identities = [row["id"] for row in (*found.kept, *found.dropped)]
    assert len(set(identities)) == read
    assert sorted(found.reasons) == sorted(row["id"] for row in found.dropped)
    assert all(entry["reason"] and entry["evidence"] for entry in found.ledger)


def test_what_comes_out_is_a_prompt_file(tmp_path: Path) -> None:
    run_recipe(recipe(tmp_path), tmp_path / "out", 1, lambda text: None)
    found = Curated(tmp_path / "out")
    records = read_prompt_file(tmp_path / "out" / "kept.jsonl").records
    assert len(records) == len(found.kept) > 100
    assert {"source", "level", "words", "language", "subject", "answer_kind"} <= records[0].metadata.keys()
    assert {"multiple_choice", "exact_duplicate", "near_duplicate", "benchmark:bench"} <= set(found.reasons.values())
    page = (tmp_path / "out" / "report.html").read_text()
    assert "near_duplicate" in page and "<script" not in page
    assert not list((tmp_path / "out").rglob("*.tmp"))


def test_processes_do_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "PIECE", 20_000)  # several shards of each source
    given = recipe(tmp_path)
    run_recipe(given, tmp_path / "one", 1, lambda text: None)
    run_recipe(given, tmp_path / "two", 2, lambda text: None)
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "two")


def test_only_what_changed_is_done_again(tmp_path: Path) -> None:
    given, said = recipe(tmp_path), []
    run_recipe(given, tmp_path / "out", 1, said.append)
    assert not any("done before" in line for line in said)
    before = bytes_of(tmp_path / "out")
    said.clear()
    run_recipe(given, tmp_path / "out", 1, said.append)
    assert len(said) == 6 and all("done before" in line for line in said) and bytes_of(tmp_path / "out") == before
    said.clear()
    changed = Recipe(given.sources, (*given.steps[:2], Near(threshold=0.9), *given.steps[3:]))
    run_recipe(changed, tmp_path / "out", 1, said.append)
    assert ["done before" in line for line in said] == [True, True, True, False, False, False]
    write_jsonl(tmp_path / "bench.jsonl", [{"problem": BENCH, "answer": "11"}])
    said.clear()
    run_recipe(changed, tmp_path / "out", 1, said.append)
    assert ["done before" in line for line in said] == [True, True, True, True, False, False]
    assert len(list((tmp_path / "out" / "work").iterdir())) == 6
    write_jsonl(tmp_path / "a.jsonl", rows(10))
    said.clear()
    run_recipe(changed, tmp_path / "out", 1, said.append)
    assert not any("done before" in line for line in said)


def test_a_torn_shard_is_done_again(tmp_path: Path) -> None:
    given = recipe(tmp_path)
    run_recipe(given, tmp_path / "out", 1, lambda text: None)
    before = bytes_of(tmp_path / "out")
    torn = next((tmp_path / "out" / "work").glob("01-clean-*/00000.kept.jsonl"))
    torn.write_bytes(torn.read_bytes()[:-100])
    run_recipe(given, tmp_path / "out", 1, lambda text: None)
    assert bytes_of(tmp_path / "out") == before


def test_two_runs_in_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from megatron_ring.run import lock

    monkeypatch.setattr(lock, "SECONDS_TO_WAIT", 0.0)
    (tmp_path / "out").mkdir()
    with lock.take_lock(tmp_path / "out"), pytest.raises(UserError, match=r"--out .*another run is going on"):
        run_recipe(recipe(tmp_path, 3), tmp_path / "out", 1, lambda text: None)


@pytest.mark.slow
def test_killed_and_continued(tmp_path: Path) -> None:
    recipe(tmp_path, 6000)
    (tmp_path / "r.yaml").write_text(
        "sources: [{name: a, files: a.jsonl}, {name: b, files: b.jsonl}]\n"
        "steps: [clean, exact, near, {decontaminate: {benchmarks: bench.jsonl}}, annotate]\n"
    )

    def start(out: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "megatron_ring.curate", str(tmp_path / "r.yaml"), "--out", str(tmp_path / out)]
        return subprocess.Popen(
            [*command, "--processes", "2"], env=environment(), stdout=subprocess.DEVNULL, start_new_session=True
        )

    def of_session(number: int) -> list[str]:
        """Processes that a run has left behind."""
        states = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                states.append(path.read_text().rpartition(")")[2].split())
        return [state[0] for state in states if int(state[3]) == number and state[0] != "Z"]

    begun = time.monotonic()
    assert start("whole").wait() == 0
    seconds, rng = time.monotonic() - begun, random.Random(1)
    for _ in range(4):
        process = start("killed")
        time.sleep(seconds * rng.uniform(0.15, 0.6))
        process.send_signal(signal.SIGKILL)
        process.wait()
        deadline = time.monotonic() + 20
        while of_session(process.pid):
            assert time.monotonic() < deadline, "its workers live on"
            time.sleep(0.05)
    assert start("killed").wait() == 0
    assert bytes_of(tmp_path / "whole") == bytes_of(tmp_path / "killed")
    assert len(read_jsonl(tmp_path / "whole" / "kept.jsonl")) > 100
