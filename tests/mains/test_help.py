"""`--help` answers at once (it loads no heavy library) and documents every flag."""

from __future__ import annotations

import dataclasses
import re
import sys
from typing import Any

import pytest

from megatron_ring.config.evaluate import EvaluateConfig
from megatron_ring.config.generate import GenerateConfig
from megatron_ring.config.metadata import types_of
from megatron_ring.config.pretrain import PretrainConfig
from megatron_ring.config.reward_model import RewardModelConfig
from megatron_ring.config.rl import RLConfig
from megatron_ring.config.serve import ServeConfig
from megatron_ring.config.sft import SFTConfig
from tests.mains.conftest import run


def flags_of(config: Any, prefix: str = "--") -> list[str]:
    found = []
    for name, hint in types_of(config).items():
        flag = f"{prefix}{name.replace('_', '-')}"
        found += flags_of(hint, f"{flag}.") if dataclasses.is_dataclass(hint) else [flag]
    return found


@pytest.mark.parametrize(
    ("module", "config"),
    [
        ("megatron_ring.pretrain", PretrainConfig),
        ("megatron_ring.sft", SFTConfig),
        ("megatron_ring.reward", RewardModelConfig),
        ("megatron_ring.rl", RLConfig),
        ("megatron_ring.evaluate", EvaluateConfig),
        ("megatron_ring.generate", GenerateConfig),
        ("megatron_ring.serve", ServeConfig),
    ],
)
def test_help(module: str, config: Any) -> None:
    done = run([sys.executable, "-X", "importtime", "-m", module, "--help"])
    assert done.returncode == 0
    loaded = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "tyro" in loaded and not loaded & {"torch", "megatron", "transformers", "numpy", "sympy", "matplotlib"}
    text = re.sub(r"[│╭╮╰╯─]", " ", done.stdout)
    for flag in flags_of(config):
        assert re.search(rf"{re.escape(flag)}\b", text), flag
    entries = re.split(r"\n\s+(?=--[a-z])", text)[1:]
    for entry in entries:
        body = " ".join(entry.split())
        assert "(default:" in body or "(required)" in body, body
        words = re.sub(r"\((default|required).*", "", body).split()[2:]
        assert len(words) >= 3, f"no description: {body}"
