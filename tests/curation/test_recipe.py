"""Recipes: what they say is read, and what is wrong is named with file and line."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_ring.curation.options import Clean, Near
from megatron_ring.curation.recipe import read_recipe
from megatron_ring.errors import UserError


def write(folder: Path, text: str) -> Path:
    (folder / "a.jsonl").write_text('{"problem": "2+2?", "answer": "4"}\n')
    (folder / "b.jsonl").write_text('{"problem": "2+3?", "answer": "5"}\n')
    (folder / "r.yaml").write_text(text)
    return folder / "r.yaml"


def test_a_recipe(tmp_path: Path) -> None:
    recipe = read_recipe(write(tmp_path, """
sources:
  - {name: one, files: "*.jsonl", fields: {prompt: problem}, domain: math, metadata: {level: 3, day: 2026-01-02}}
  - files: a.jsonl
steps:
  - clean: {languages: [en, zh], off: [link], multiple_choice: rewrite}
  - exact
  - near: {threshold: 1}
"""))  # fmt: skip
    one, other = recipe.sources
    assert [path.name for path in one.files] == ["a.jsonl", "b.jsonl"] and other.name == "a"
    assert one.metadata == {"level": 3, "day": "2026-01-02"} and one.fields == {"prompt": "problem"}
    assert recipe.steps[0] == Clean(languages=("en", "zh"), off=("link",), multiple_choice="rewrite")
    assert recipe.steps[2] == Near(threshold=1.0)


WRONG = {
    "- 3": "r.yaml:1: expected 'sources'",
    "sources: [\n": "r.yaml:2: not YAML",
    "sources: []": "r.yaml:1: 'sources' is not a list",
    "sources:\n  - files: no.jsonl": "r.yaml:2: .*no.jsonl: no such file",
    "sources:\n  - files: '*.parquet'": "r.yaml:2: .*no file of this pattern",
    "sources:\n  - file: a.jsonl": "r.yaml:2: unknown key 'file', did you mean 'files'",
    "sources:\n  - {files: a.jsonl}\n  - {files: a.jsonl}": "two sources have the name 'a'",
    "sources:\n  - {files: a.jsonl, fields: {question: x}}": "r.yaml:2: 'fields' names 'question'",
    "sources:\n  - {files: a.jsonl, name: a/b}": "'name' is 'a/b'",
    "sources:\n  - {files: a.jsonl, files: b.jsonl}": "r.yaml:2: not YAML: 'files' is given twice",
    "sources: [{files: a.jsonl}]\nsteps:\n  - neer": "r.yaml:1: unknown step 'neer', did you mean 'near'",
    "sources: [{files: a.jsonl}]\nsteps:\n  - near: {treshold: 0.5}": "r.yaml:3: near: unknown option 'treshold', did "
    "you mean",
    "sources: [{files: a.jsonl}]\nsteps:\n  - near: {threshold: high}": "threshold is 'high': give a number",
    "sources: [{files: a.jsonl}]\nsteps:\n  - near: {threshold: 2}": "threshold is 2.0: give more than 0",
    "sources: [{files: a.jsonl}]\nsteps:\n  - clean: {off: [links]}": "there is no rule 'links'",
    "sources: [{files: a.jsonl}]\nsteps:\n  - clean: {multiple_choice: yes}": "multiple_choice is 'yes': use one of "
    "drop, keep, rewrite",
    "sources: [{files: a.jsonl}]\nsteps:\n  - decontaminate": "give the files of benchmarks",
    "sources: [{files: a.jsonl}]\nsteps:\n  - decontaminate: {benchmarks: x.jsonl}": "x.jsonl: no such file",
    "sources: [{files: .}]": "is a folder",
}


@pytest.mark.parametrize("text", WRONG)
def test_what_is_wrong_is_named(text: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=WRONG[text]):
        read_recipe(write(tmp_path, text))


def test_no_such_recipe(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no.yaml: No such file"):
        read_recipe(tmp_path / "no.yaml")
