"""From raw rows to training: what a curation keeps is read by SFT and by RL as it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_ring.rewards.boxed import last_boxed
from tests.conftest import ROOT
from tests.curation.conftest import Curated, read_jsonl, write_jsonl
from tests.mains.conftest import command, command_of_tool, rl_flags, run, sft_flags
from tests.processes import forked_python

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
    assert [row["step"] for row in metrics] == [1, 2] and all(row["tokens/trained"] == 200 for row in metrics)


@pytest.mark.slow
def test_raw_rows_become_a_curriculum(tiny_data: Path, sft_checkpoint: Path, tmp_path: Path) -> None:
    """As examples/tiny/curriculum.sh: GSM8K's form, curated, solve rates by a trained model in two shards, RL."""
    (tmp_path / "recipe.yaml").write_text((ROOT / "examples/tiny/curriculum.yaml").read_text())
    (tmp_path / "heldout.jsonl").write_text((tiny_data / "heldout.jsonl").read_text())
    raw = ["--prompts", str(tiny_data / "rl_prompts.jsonl"), "--heldout", str(tiny_data / "heldout.jsonl"), "--mixed", "4"]
    done = run(command_of_tool("make_raw_data.py", *raw, "--out", str(tmp_path / "gsm8k.jsonl")))
    assert done.returncode == 0, done.stderr
    done = run(command("megatron_ring.curate", str(tmp_path / "recipe.yaml"), "--processes", "1"))
    assert done.returncode == 0, done.stderr
    found = Curated(tmp_path / "recipe")
    assert set(found.reasons.values()) == {"missing_answer", "exact_duplicate", "benchmark:heldout"}
    assert {row["metadata"]["subject"] for row in found.kept} and len(found.kept) > 20

    rate = ["--prompts", str(tmp_path / "recipe" / "kept.jsonl"), "--out", str(tmp_path / "rated"), "--samples", "2"]
    sampler = ["--", "--checkpoint", str(sft_checkpoint), "--tokenizer", str(tiny_data / "tokenizer"),
               "--sampling.max-new-tokens", "24", "--rewards.workers", "1"]  # fmt: skip
    given = forked_python()  # the evaluations that it starts
    done = run(command_of_tool("solve_rate.py", *rate, "--shard", "1/2", *sampler), env=given)
    half = len(found.kept) // 2
    assert done.returncode == 0 and "others are not" in done.stdout, done.stderr
    done = run(command_of_tool("solve_rate.py", *rate, *sampler), env=given)
    assert done.returncode == 0 and f"{half:,} of {len(found.kept):,} problems to sample" in done.stdout, done.stderr
    rated = read_jsonl(tmp_path / "rated" / "kept.jsonl")
    assert [row["id"] for row in rated] == [row["id"] for row in found.kept]
    assert all(row["metadata"]["solve_samples"] == 2 for row in rated)

    flags = rl_flags(tiny_data, tmp_path / "rl", sft_checkpoint, "--data.curriculum", "solve-rate", "--data.max-solve-rate",
                     "0.99")  # fmt: skip
    flags[flags.index("--data.prompts") + 1] = str(tmp_path / "rated" / "kept.jsonl")
    done = run(command("megatron_ring.rl", *flags))
    assert done.returncode == 0, done.stderr
    drawn = [
        row["prompt_id"] for path in sorted((tmp_path / "rl" / "rollouts").rglob("*.jsonl")) for row in read_jsonl(path)
    ]
    rates = {row["id"]: row["metadata"]["solve_rate"] for row in rated}
    assert drawn and all(rates[name] <= 0.99 for name in drawn)


@pytest.mark.slow
def test_a_checkpoint_judges_subjects(tiny_data: Path, tmp_path: Path) -> None:
    """Our own server is started for it and ends with the step. What it says is no verdict, which is counted."""
    model = tmp_path / "model"
    done = run(command_of_tool("make_random_hf.py", "--preset", "ring-tiny", "--out", str(model)))
    assert done.returncode == 0, done.stderr
    shape = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**shape, "max_position_embeddings": 4096}))  # the prompt is long
    rows = [json.loads(line) for line in (tiny_data / "rl_prompts.jsonl").read_text().splitlines()]
    maths = [row for row in rows if row["domain"] == "math"][:3]
    write_jsonl(tmp_path / "rows.jsonl", maths)
    options = [f"checkpoint={model}", f"tokenizer={tiny_data / 'tokenizer'}", "max_tokens=4"]
    given = ["judge_subject", "--input", str(tmp_path / "rows.jsonl"), "--out", str(tmp_path / "out"), "--set", *options]
    done = run(command_of_tool("curate.py", *given), env=forked_python())
    assert done.returncode == 0, done.stderr
    noted = read_jsonl(tmp_path / "out" / "ledger.jsonl")
    assert [(entry["action"], entry["reason"]) for entry in noted] == [("changed", "no_verdict")] * 3
    assert len(Curated(tmp_path / "out").kept) == 3
    done = run(command_of_tool("curate.py", *given[:-3], f"checkpoint={tmp_path}"), env=forked_python())
    assert done.returncode == 2 and "judge_subject: checkpoint" in done.stderr and "cannot be served" in done.stderr
