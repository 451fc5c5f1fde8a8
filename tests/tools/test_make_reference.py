"""docs/reference/flags.md is what the configurations say."""

from __future__ import annotations

import pytest

from megatron_ring.config.cli import parse
from megatron_ring.config.generate import GenerateConfig
from megatron_ring.config.metadata import flag_of, names_of
from tests.conftest import ROOT
from tools.make_reference import PAGE, reference, stages


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text() == reference(), "run: python tools/make_reference.py"


@pytest.mark.parametrize("main", stages())
def test_every_flag_is_there_with_its_meaning(main: str) -> None:
    section = reference().split(f"## {main}\n")[1].split("\n## ")[0]
    rows = {row.split("`")[1]: row.split(" | ")[3].removesuffix(" |") for row in section.splitlines() if "| `--" in row}
    assert list(rows) and rows.keys() == {flag_of(name) for name in names_of(stages()[main])}
    assert all(len(meaning.split()) >= 3 for meaning in rows.values()), rows


def test_switches_are_set_and_cleared_as_the_page_says() -> None:
    needed = ["--checkpoint", "c", "--tokenizer", "t"]
    config = parse(GenerateConfig, "ring-generate", "", [*needed, "--exact", "--sampling.no-cuda-graphs"])
    assert config.exact and not config.sampling.cuda_graphs
    assert "| `--exact` | switch | off |" in reference() and "| `--sampling.cuda-graphs` | switch | on |" in reference()
    assert "| `--exact` ↻ | switch | off |" in reference()


def test_every_stage_has_a_main() -> None:
    assert stages().keys() >= {"sft", "rl", "evaluate", "generate"}
    assert all((ROOT / f"megatron_ring/{name}.py").is_file() for name in stages())
