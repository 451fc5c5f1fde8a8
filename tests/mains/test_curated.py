"""From raw rows to training: what a curation keeps is read by SFT and by RL as it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_ring.rewards.boxed import last_boxed
from tests.curation.conftest import Curated, write_jsonl
from tests.mains.conftest import command, rl_flags, run, sft_flags

RECIPE = """
sources:
  - {name: teacher, files: openr1.jsonl, response: generations}
steps:
  - clean
  - {decontaminate: {benchmarks: heldout.jsonl}}
  - {responses: {think: any, max_characters: 2000}}
  - verify
  - {per_problem: {keep: 2, prefer: shortest}}
  - annotate
"""


def raw_rows(data: Path) -> list[dict[str, object]]:
    """OpenR1-Math's form: some problems with two right responses, one that is wrong, one that is not whole; one that lacks
    its answer; one of the benchmark."""
    rows: list[dict[str, object]] = []
    for line in (data / "sft_train.jsonl").read_text().splitlines():
        row = json.loads(line)
        prompt, response = (
            (message["content"] for message in row["messages"]) if "messages" in row else (row["prompt"], row["response"])
        )
        answer = last_boxed(response)
        if isinstance(prompt, str) and answer is not None and answer.strip().isdigit():
            generations = [response, f"So: {response}", "It is \\boxed{123456}.", response[: len(response) // 3]]
            rows.append(
                {"uuid": str(len(rows)), "problem": prompt, "answer": answer, "source": "x", "generations": generations}
            )
    rows[0]["answer"] = None
    return rows[:40]


@pytest.mark.slow
def test_raw_rows_become_training(tiny_data: Path, tmp_path: Path) -> None:
    rows = raw_rows(tiny_data)
    write_jsonl(tmp_path / "openr1.jsonl", rows)
    write_jsonl(tmp_path / "heldout.jsonl", [{"problem": rows[1]["problem"], "answer": rows[1]["answer"]}])
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    done = run(command("megatron_ring.curate", str(tmp_path / "recipe.yaml"), "--processes", "1"))
    assert done.returncode == 0, done.stderr
    found = Curated(tmp_path / "recipe")
    assert {"missing_answer", "wrong_response", "benchmark:heldout"} <= set(found.reasons.values())
    assert found.summary["read"] == len(found.kept) + len(found.dropped) and len(found.kept) > 20

    kept = str(tmp_path / "recipe" / "kept.jsonl")
    flags = sft_flags(tiny_data, tmp_path / "sft", "--epochs", "1")
    flags[flags.index("--data.train") + 1] = kept
    done = run(command("megatron_ring.sft", *flags))
    assert done.returncode == 0, done.stderr
    checkpoints = tmp_path / "sft" / "checkpoints"
    flags = rl_flags(tiny_data, tmp_path / "rl", checkpoints / (checkpoints / "latest").read_text().strip())
    flags[flags.index("--data.prompts") + 1] = kept
    done = run(command("megatron_ring.rl", *flags))
    assert done.returncode == 0, done.stderr
    metrics = [json.loads(line) for line in (tmp_path / "rl" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in metrics] == [1, 2] and all(row["tokens/trained"] == 300 for row in metrics)
