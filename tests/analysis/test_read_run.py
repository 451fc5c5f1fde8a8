"""Reading run directories: torn and broken lines, resumed runs, typed configs, evaluations."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_ring.analysis.read_run import (
    epoch_checkpoints,
    read_config,
    read_evaluation,
    read_jsonl,
    read_metrics,
    read_rollouts,
    read_run,
    rollout_steps,
)
from megatron_ring.errors import UserError
from tests.analysis.plausible import write_evaluation, write_jsonl, write_rl, write_sft


@pytest.mark.parametrize("torn", [b'{"step": 3, "los', b'{"step": 3, "a": "\xc3', b"{", b'{"step": 3, "a": nul'])
def test_a_torn_last_line_is_dropped(tmp_path: Path, torn: bytes) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b'{"step": 1}\n{"step": 2}\n' + torn)
    assert [record["step"] for record in read_metrics(file)] == [1, 2]


@pytest.mark.parametrize("bad", [b'{"step": 2, "los\n', b"[1]\n", b"\xff\n", b"[" * 100_000 + b"\n"])
def test_a_bad_whole_line_is_named(tmp_path: Path, bad: bytes) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b'{"step": 1}\n' + bad)
    with pytest.raises(UserError, match=r"metrics\.jsonl:2: "):
        read_metrics(file)
    file.write_bytes(b'{"step": 1}\n' + bad + b'{"step": 3}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl:2: "):
        read_metrics(file)


def test_a_last_line_without_newline_counts_when_whole(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_bytes(b'\n{"step": 1}\n\n{"step": 2}')
    assert len(read_jsonl(tmp_path / "m.jsonl")) == 2


def test_steps_written_again_after_a_resume_replace_the_first(tmp_path: Path) -> None:
    write_jsonl(
        tmp_path / "m.jsonl", [{"step": step, "loss": loss} for step, loss in ((1, 9), (2, 8), (3, 7), (2, 5), (3, 4))]
    )
    assert [(row["step"], row["loss"]) for row in read_metrics(tmp_path / "m.jsonl")] == [(1, 9), (2, 5), (3, 4)]


def test_metrics_without_step_or_file(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "metrics.jsonl", [{"loss": 1}])
    with pytest.raises(UserError, match="record 1 has no step"):
        read_run(tmp_path)
    write_jsonl(tmp_path / "metrics.jsonl", [])
    with pytest.raises(UserError, match="holds no step"):
        read_run(tmp_path)
    with pytest.raises(UserError, match="no such file"):
        read_run(tmp_path / "elsewhere")


def test_sft_epochs(tmp_path: Path) -> None:
    found = epoch_checkpoints(read_run(write_sft(tmp_path)))
    assert [(epoch.checkpoint, epoch.epoch, epoch.tokens) for epoch in found[:2]] == [
        ("step_40", 1, 40 * 16_384),
        ("step_80", 2, 80 * 16_384),
    ]
    assert len(found) == 6


def test_rl_series_domains_and_rollouts(tmp_path: Path) -> None:
    run = read_run(write_rl(tmp_path, steps=12))
    assert run.domains("reward/mean") == ["math", "science"]
    assert run.series("tokens/trained") == ([float(step) for step in range(1, 13)], [16_384.0] * 12)
    assert run.series("absent") == ([], [])
    assert rollout_steps(tmp_path) == [1, 10, 12]  # by number, not by name
    assert len(read_rollouts(tmp_path, 12)) == 12


def test_config_is_flat_and_tags_build_nothing(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(
        "!dataclass:Config\nmodel: !dataclass:Model {layers: 4, shape: !tuple [1, 2]}\nempty: {}\nname: !path x\n"
    )
    assert read_config(file) == {"model.layers": 4, "model.shape": [1, 2], "empty": {}, "name": "x"}
    file.write_text("a: !!python/object/apply:os.system ['exit 1']\n")
    assert read_config(file) == {"a": ["exit 1"]}
    assert read_config(tmp_path / "none.yaml") == {}
    file.write_text("a: 1\nb: [\n")
    with pytest.raises(UserError, match=r"config\.yaml:\d+: not YAML"):
        read_config(file)


def test_evaluation(tmp_path: Path) -> None:
    evaluation = read_evaluation(write_evaluation(tmp_path, 0.4, problems=30, samples=2))
    assert len(evaluation.rewards()) == 30 and all(len(group) == 2 for group in evaluation.rewards().values())
    samples = [*evaluation.samples, {**evaluation.samples[0], "reward": 1.5}]
    write_jsonl(tmp_path / "samples.jsonl", samples)
    with pytest.raises(UserError, match=r"record 61: reward 1\.5 is outside"):
        read_evaluation(tmp_path)
    (tmp_path / "result.json").write_text(json.dumps({"checkpoint": "x", "problems": 3}))
    with pytest.raises(UserError, match="has no pass_at_1"):
        read_evaluation(tmp_path)
    (tmp_path / "result.json").unlink()
    with pytest.raises(UserError, match="wait until it has finished"):
        read_evaluation(tmp_path)
