"""A dry run reads the prompts as the run would: stage files, solve rates, a verifier for each domain."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from megatron_ring.config.rewards import RewardConfig
from megatron_ring.config.rl import RLDataConfig
from megatron_ring.data.files import write_prompts
from megatron_ring.data.records import PromptRecord
from megatron_ring.errors import UserError
from megatron_ring.planning.checks import Checks


def test_prompts_of_a_stage_file(tmp_path: Path) -> None:
    def rows(domain: str, count: int) -> list[PromptRecord]:
        return [PromptRecord(f"{i}", domain, "?", "1", {"solve_rate": i / count}) for i in range(count)]

    write_prompts(tmp_path / "math.jsonl", rows("math", 10))
    write_prompts(tmp_path / "other.jsonl", rows("science", 4))
    path = tmp_path / "stages.yaml"
    stages = [{"steps": 5, "prompts": [{"file": "math.jsonl"}]}, {"prompts": [{"file": "other.jsonl"}]}]
    path.write_text(yaml.safe_dump({"stages": stages}))
    training = RLDataConfig(prompts=path, tokenizer=tmp_path, min_solve_rate=0.5)
    checks = Checks()
    assert len(checks.prompts(path, "--data.prompts", RewardConfig(), training) or []) == 5 + 2
    assert checks.done == [f"--data.prompts {path}: 7 prompts (5 math, 2 science) in 2 stages, each with a verifier"]
    (path_line,) = checks.done
    for steps, late in ((5, ["stage 2 of the data begins at step 6: with --steps 5 nothing is drawn from it"]), (6, [])):
        checks = Checks()
        checks.prompts(path, "--data.prompts", RewardConfig(), training, steps)
        assert checks.done == [path_line, *(f"--data.prompts {path}: {said}" for said in late)]
    with pytest.raises(UserError, match="unknown kind of file"):  # nothing is trained on in an evaluation
        checks.prompts(path, "--prompts", RewardConfig())
    write_prompts(tmp_path / "other.jsonl", rows("poetry", 4))
    with pytest.raises(UserError, match=r"--data\.prompts .*other\.jsonl: unknown domain 'poetry'"):
        checks.prompts(path, "--data.prompts", RewardConfig(), training)
