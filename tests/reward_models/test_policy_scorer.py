"""A reward model beside the policy: what is refused before it scores anything."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from megatron_ring.config.rewards import RewardConfig
from megatron_ring.data.tokenizer import RingTokenizer, train_bpe
from megatron_ring.errors import UserError
from megatron_ring.reward_models.policy_scorer import check_tokenizer
from megatron_ring.rollout.scoring_content import reward_model_shape
from tests.processes import run


def random_folder(out: Path, *flags: str) -> Path:
    done = run([sys.executable, "tools/make_random_hf.py", "--preset", "ring-tiny", "--out", str(out), *flags])
    assert done.returncode == 0, done.stderr
    return out


def test_another_model_and_another_vocabulary(tmp_path: Path) -> None:
    scores, language = random_folder(tmp_path / "scores", "--head", "score"), random_folder(tmp_path / "language")
    assert reward_model_shape(RewardConfig(reward_model=scores)).head == "score"
    for wrong, said in (
        (language, f"--rewards.reward-model {language}: a language model, which has no score"),
        (tmp_path / "nowhere", f"--rewards.reward-model: {tmp_path / 'nowhere'}: no such checkpoint"),
        (tmp_path, f"--rewards.reward-model: {tmp_path / 'config.json'}: no such file"),
    ):
        with pytest.raises(UserError) as error:
            reward_model_shape(RewardConfig(reward_model=wrong))
        assert str(error.value).startswith(said)
    for name, texts in (("a", ["some text"] * 9), ("b", ["another one"] * 9)):
        train_bpe(texts, 280, tmp_path / name)
    own = RingTokenizer.load(tmp_path / "a")
    check_tokenizer(scores, own, "--flag")  # it has none of its own
    for name in ("a", "b"):
        for file in (tmp_path / name).iterdir():
            shutil.copy(file, scores)
        if name == "a":
            check_tokenizer(scores, own, "--flag")
        else:
            with pytest.raises(UserError, match="--flag: its tokenizer has another vocabulary"):
                check_tokenizer(scores, own, "--flag")
