"""Rows that an evaluation has left: which of them count."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from megatron_ring.config.evaluate import EvaluateConfig
from megatron_ring.config.parallel import ParallelConfig
from megatron_ring.config.presets import RING_TINY
from megatron_ring.config.sampling import SamplingConfig
from megatron_ring.data.records import Message
from megatron_ring.errors import UserError
from megatron_ring.evaluate import deciding
from megatron_ring.parallel import context
from megatron_ring.rollout import benchmark_stage, scored_rows
from megatron_ring.rollout.records import Rollout, ScoredRollout
from tests.rollout.responses import completion


def row(place: int, reward: float = 1.0, **more: Any) -> str:
    found = {"place": place, "id": str(place), "domain": "math", "reward": reward, "tokens": 3, "finish_reason": "stop"}
    return json.dumps({**found, "sample": 0, "response": "x", **more}) + "\n"


def test_whole_rows_with_a_verdict(tmp_path: Path) -> None:
    assert scored_rows._standing(tmp_path / "u", {"seed": 1}, False) == []
    failed = row(1, 0.0, detail={"machine_failure": "killed"})
    (tmp_path / "u" / "replica-0.jsonl").write_text(row(0) + failed + row(2)[:-5])
    assert scored_rows._standing(tmp_path / "u", {"seed": 1}, False) == [(0, 0)]
    # Asked again, by another replica before and behind the failure: the row with a verdict counts.
    (tmp_path / "u" / "replica-0.jsonl").write_text(row(0) + row(1))
    (tmp_path / "u" / "replica-1.jsonl").write_text(failed)
    found = scored_rows._places(tmp_path / "u")
    assert sorted(found) == [(0, 0), (1, 0)] and found[1, 0].figures.reward == 1
    lines = b"".join(scored_rows._lines(list(found.values())))
    assert [json.loads(line)["id"] for line in lines.splitlines()] == ["0", "1"] and b"place" not in lines


DIFFERENT = [
    ({"seed": 2}, r"another --seed \(1, now 2\): give what it was begun with"),
    ({"seed": 1, "temperature": 0.5}, r"another --sampling\.temperature \(null, now 0\.5\)"),
    ({"seed": 1, "sampling_weights": "fp8"}, r"another --sampling\.weights \(null"),
    ({"seed": 1, "sampling_activations": "fp8"}, r'another --sampling\.activations \(null, now "fp8"\)'),
    ({"seed": 1, "checkpoint_fingerprint": "a"}, r"another --checkpoint, or other content of it"),
    ({"seed": 1, "prompts_sha256": "a"}, r"another --prompts, or"),
    ({"seed": 1, "tokenizer_fingerprint": "a"}, r"another --tokenizer or --chat-template"),
    ({"seed": 1, "time_limit": 4}, r"another --rewards\.time-limit \(null, now 4\)"),
    ({"seed": 1, "rewards.judge.model": "m"}, r"another --rewards\.judge\.model, or"),
    ({"seed": 1, "stop_strings": ["é"]}, r'another --sampling\.stop-strings \(null, now \["é"\]\)'),
]


@pytest.mark.parametrize(("identity", "message"), DIFFERENT)
def test_rows_of_another_evaluation_are_refused(identity: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = tmp_path / "unfinished"
    scored_rows._standing(folder, {"seed": 1}, False)
    assert scored_rows._standing(folder, identity, False) == [], "nothing would be lost"
    scored_rows._standing(folder, {"seed": 1}, False)
    (folder / "replica-0.jsonl").write_text(row(0) + row(1) + row(2)[:-1])
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(
        UserError, match=rf"--out \S+: \S+unfinished holds 2 responses .*{message}.*remove them by --restart"
    ) as caught:
        scored_rows._standing(folder, identity, False)
    assert "\n" not in str(caught.value)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert scored_rows._standing(folder, {"seed": 1}, False) == [(0, 0), (1, 0)]


def identities(folder: Path, sampling: dict[str, Any]) -> list[dict[str, Any]]:
    """What an evaluation of prompts and one of benchmarks tell of themselves."""
    context.initialize(ParallelConfig(), RING_TINY, 0)
    stage: Any = SimpleNamespace(model=SimpleNamespace(config=SimpleNamespace(params_dtype=torch.bfloat16)))
    tokenizer: Any = SimpleNamespace(fingerprint="f")
    given: Any = {"checkpoint": folder, "tokenizer": folder, "out": folder, "sampling": SamplingConfig(**sampling)}
    prompts, benchmark = folder / "prompts.jsonl", folder / "aime-2024.jsonl"
    prompts.write_text("")
    one, many = EvaluateConfig(**given, prompts=prompts), EvaluateConfig(**given, benchmark=(benchmark,))
    return [deciding(one, stage, tokenizer), benchmark_stage._identity(many, tokenizer, [])]


def test_evaluations_tell_what_multiplies(run_on: Any, tmp_path: Path) -> None:
    """So that responses of other numbers are not gone on with. bf16 activations are told of as by versions that had no
    others."""
    ways = ({}, {"weights": "fp8"}, {"weights": "fp8", "activations": "fp8"})
    of_ways = [run_on(1, identities, tmp_path, way)[0] for way in ways]
    for usual, narrow, rounded in zip(*of_ways, strict=True):
        assert scored_rows._differing(usual, narrow) and scored_rows._differing(narrow, rounded)
        told = {name: value for name, value in narrow.items() if value is not None}
        assert "activations" not in json.dumps(told) and "activations" in json.dumps(rounded)


def test_a_setting_that_another_version_did_not_have_was_not_set(tmp_path: Path) -> None:
    scored_rows._standing(tmp_path, {"seed": 1, "gone": None}, False)
    (tmp_path / "replica-0.jsonl").write_text(row(0))
    assert scored_rows._standing(tmp_path, {"new": None, "seed": 1}, False) == [(0, 0)]
    with pytest.raises(UserError, match=r"another --new \(null, now 1\)"):
        scored_rows._standing(tmp_path, {"new": 1, "seed": 1}, False)


def test_rows_are_removed_where_that_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """These alone: the folder may hold files of the user's."""
    for seed in (1, 2):  # of another evaluation, then of the same
        scored_rows._standing(tmp_path / "u", {"seed": 1}, False)
        (tmp_path / "u" / "replica-0.jsonl").write_text(row(0) + row(1))
        (tmp_path / "u" / "notes.txt").write_text("mine")
        assert scored_rows._standing(tmp_path / "u", {"seed": seed}, True) == []
        assert "removed 2 responses" in capsys.readouterr().out
        assert not (tmp_path / "u" / "replica-0.jsonl").exists() and (tmp_path / "u" / "notes.txt").exists()
    (tmp_path / "u" / "evaluation.json").write_text("{")
    (tmp_path / "u" / "replica-0.jsonl").write_text(row(0))
    with pytest.raises(UserError, match="another command, which it does not tell"):
        scored_rows._standing(tmp_path / "u", {"seed": 1}, False)


def test_rows_that_are_missing(run_on: Any, tmp_path: Path) -> None:
    """As where each machine has an --out of its own: no result of a part. Messages are as files have them."""
    run_on(1, _write_too_few, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["samples.jsonl"]
    (line,) = (tmp_path / "samples.jsonl").read_text().splitlines()
    assert json.loads(line)["prompt"] == [{"role": "user", "content": "q"}]


def _write_too_few(out: Path) -> None:
    from megatron_ring.parallel import context

    found = {"id": "a", "domain": "math", "reward": 1.0, "tokens": 3, "finish_reason": "stop", "sample": 0}
    here = context.initialize(ParallelConfig(), RING_TINY, 0)
    item = ScoredRollout(Rollout(0, 0, "a", "math", [1], 0, completion(3)), 1.0, "why", {})
    with scored_rows.ScoredRows(out, {}, here, lambda _: {**found, "prompt": (Message("user", "q"),)}) as rows:
        rows.add(item)
    with pytest.raises(UserError, match=r"1 of 2 responses are here: let --out be a folder that the machines"):
        rows.write(out / "samples.jsonl", 2)
    assert rows.write(out / "samples.jsonl", 1)[0].reward == 1
    rows.remove()


def test_a_strange_line_is_named(tmp_path: Path) -> None:
    scored_rows._standing(tmp_path, {}, False)
    (tmp_path / "replica-0.jsonl").write_text(row(0) + "[]\n")
    with pytest.raises(UserError, match=r"replica-0\.jsonl:2: not a row of an evaluation"):
        scored_rows._standing(tmp_path, {}, False)
